"""The server of the page: it takes pictures and answers questions about them."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from matplotlib import colormaps
from starlette.exceptions import HTTPException as StarletteHTTPException

from ..analysis import PASSES
from ..plotting import PALETTE
from ..plotting.support import COLORS
from ..synthetic.scenes import SceneSettings, draw_scene
from .jobs import Job, Jobs, QueueFullError
from .networks import SCORE, choose_layers
from .pictures import FORMATS, KEPT, MAX_BYTES, MAX_PIXELS, MAX_SIDE, NoPictureError, PictureCache, read_picture
from .questions import Question  # noqa: TC001  # FastAPI reads the annotations when it runs
from .safety import Guard

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from types import FrameType

    from .jobs import Result
    from .networks import Network
    from .pictures import CachedPicture

UPLOAD = "/api/pictures"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATIENCE = 30  # seconds for a picture to arrive
DISCARDED = 20 * MAX_BYTES  # bytes read of a body that is too large, so that its sender gets to read the error
TICK = 0.03  # seconds between two looks at a job


def page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files: content and type of each, by name. Nothing else is ever served from disk."""
    folder = resources.files("torchdcn.web") / "page"
    found = {}
    for file in folder.iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            found[file.name] = (file.read_bytes(), TYPES[suffix])
    return found


def create_app(networks: Sequence[Network], jobs: Jobs, host: str = "127.0.0.1") -> Guard:
    """The application, an ASGI callable.

    Args:
        networks: The networks that the page asks, in the order in which it shows them.
        jobs: The queue that does the work.
        host: The address that the server listens at.
    """
    choose_layers(networks)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # FastAPI's own pages load scripts from elsewhere
    _answer_errors_as_json(app)
    _serve_page(app, networks)
    _serve_questions(app, networks, jobs, PictureCache())
    return Guard(app, host, UPLOAD)


def _answer_errors_as_json(app: FastAPI) -> None:
    def on_http(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    def on_invalid(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse({"error": f"{place}: {first['msg'].removeprefix('Value error, ')}"}, 422)

    def on_fault(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"unexpected {type(error).__name__}"}, 500)

    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_fault)


def _serve_page(app: FastAPI, networks: Sequence[Network]) -> None:
    files = page_files()
    about = {
        "networks": [network.to_json() for network in networks],
        "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS, "side": MAX_SIDE, "kept": KEPT, "formats": FORMATS},
        "passes": PASSES,
        "score": SCORE,
        "palette": PALETTE,
        # The colours of every other picture of the project, from little to much.
        "colors": [list(colormaps[COLORS](i, bytes=True)[:3]) for i in range(256)],
    }
    about_json = json.dumps(about, default=int).encode()

    @app.get("/")
    def page() -> Response:
        return Response(files["page.html"][0], media_type="text/html")

    @app.get("/page/{name}")
    def part(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        content, kind = files[name]
        return Response(content, media_type=kind)

    @app.get("/api/about")
    def facts() -> Response:
        return Response(about_json, media_type="application/json")


def _serve_questions(app: FastAPI, networks: Sequence[Network], jobs: Jobs, cache: PictureCache) -> None:
    decoding = asyncio.Semaphore(2)  # each may take a few hundred megabytes for a moment

    def cached_picture(id: str) -> CachedPicture:
        try:
            return cache.get(id)
        except KeyError:
            text = f"picture: not held (any longer: the newest {KEPT} are); send it again"
            raise HTTPException(404, text) from None

    @app.post(UPLOAD, status_code=201)
    async def upload(request: Request) -> JSONResponse:
        async with decoding:
            try:
                content = await asyncio.wait_for(_body(request), PATIENCE)
                pixels, original = await anyio.to_thread.run_sync(read_picture, content)
            except NoPictureError as error:
                raise HTTPException(error.status, str(error)) from error
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f"image: did not arrive within {PATIENCE} s") from error
        return JSONResponse(cache.add(pixels, original).to_json(), 201)

    scenes = itertools.count()

    @app.post("/api/example", status_code=201)
    def example() -> dict[str, Any]:
        # Networks from scratch know figures of the size that they were trained with.
        side = min(max(networks[0].model.settings.sizes[-1], 96), 256)
        scene = draw_scene(np.random.default_rng(next(scenes)), side, SceneSettings.at(0.3))
        return cache.add(scene.image, (side, side)).to_json()

    @app.get("/api/pictures/{id}.png")
    def picture(id: str) -> Response:
        return Response(cached_picture(id).png(), media_type="image/png")

    @app.post("/api/questions")
    async def ask(question: Question, request: Request) -> Response:
        picture = cached_picture(question.picture)
        try:
            question.check(networks)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        known = picture.cached(question.key())
        if known is not None:
            return Response(_done(question, known), media_type="text/event-stream")
        job = Job(lambda job: question.compute(job, networks[question.network], picture))
        try:
            jobs.put(job)
        except QueueFullError as error:
            raise HTTPException(503, str(error), {"retry-after": "5"}) from error
        return StreamingResponse(_events(job, jobs, question, picture, request), media_type="text/event-stream")

    @app.get("/api/pictures/{id}/bytes")
    def data(id: str, question: str) -> Response:
        result = cached_picture(id).cached(question)
        if result is None or result.data is None:
            raise HTTPException(404, "question: has no bytes, or not any longer; ask it again")
        return Response(result.data, media_type="application/octet-stream")


async def _body(request: Request) -> bytes:
    """A request's body; a body that is too large is not kept.

    Raises:
        NoPictureError: It is too large.
    """
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BYTES:
            content += chunk
        elif size > DISCARDED:
            break
        else:
            content.clear()
    if size > MAX_BYTES:
        raise NoPictureError(f"image: the file has more than {MAX_BYTES // 2**20} MB, which is the limit", 413)
    return bytes(content)


def _event(kind: str, facts: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(facts)}\n\n"


def _done(question: Question, result: Result) -> str:
    return _event("done", {"facts": result.facts, "bytes": question.key() if result.data is not None else None})


async def _events(
    job: Job, jobs: Jobs, question: Question, picture: CachedPicture, request: Request
) -> AsyncIterator[str]:
    """Reports a job's progress until it ends. A client that disconnects stops the job."""
    sent = ""
    try:
        while True:
            if job.state == "waiting":
                news = _event("waiting", {"ahead": jobs.ahead(job)})
            elif job.state == "working":
                news = _event("working", {"done": job.done, "total": job.total})
            else:
                break
            if news != sent:
                yield news
                sent = news
            await asyncio.sleep(TICK)
            if await request.is_disconnected():
                return
        if job.state == "done" and job.result is not None:
            picture.store(question.key(), job.result)
            yield _done(question, job.result)
        elif job.state == "failed":
            yield _event("failed", {"error": job.error})
        else:
            yield _event("stopped", {})
    finally:
        job.stop()


class Server(uvicorn.Server):
    """uvicorn's server, which ends its jobs, then its connections, when it is asked to stop.

    Args:
        app: What :func:`create_app` made.
        jobs: Its jobs.
        ready: Called when requests are answered.
    """

    def __init__(self, app: Guard, jobs: Jobs, ready: Callable[[], object] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=100,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._jobs = jobs
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to answer, and says so."""
        await super().startup(sockets)
        self._ready()

    def stop(self) -> None:
        """Ends the server soon; from any thread."""
        self._jobs.stop()  # their event streams end, and with them the connections
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the server, a second one at once; uvicorn's own would kill the process after it."""
        if threading.current_thread() is not threading.main_thread():  # only there does Python let handlers be set
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
            self.force_exit = self.should_exit
            self.stop()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
