"""``torchdcn serve``."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import console, verb
from .explain import COMPARED, model_and_weights
from .options import Device, Model, Weights, model_of
from .words import said_as

if TYPE_CHECKING:
    from ..web.networks import Network


@verb("serve", example="torchdcn serve --model mask_rcnn_r18_fpn_mdconv_c3-c5 --weights runs/my/last.safetensors")
def serve(
    model: Model = None,
    weights: Weights = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen at. By default only this machine can reach the page.")
    ] = "127.0.0.1",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="MODEL[:WEIGHTS]", help="Another network, beside; may be repeated.")
    ] = None,
    min_size: Annotated[int | None, typer.Option(min=16, help="Short side; by default the weights' own.")] = None,
    device: Device = None,
) -> None:
    """Shows a page in the browser: drop an image, see what is found, point at it, and see what the network looked at.

    The page is at http://127.0.0.1:8000 until Ctrl-C or SIGTERM, which end it with exit code 0. Needs the extra "web".
    """
    try:
        from ..web.jobs import Jobs
        from ..web.safety import is_loopback
        from ..web.server import Server, create_app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette", "pydantic", "anyio"):
            raise
        raise ImportError(f"serve needs {error.name}: pip install fastapi pydantic uvicorn") from error

    model = model_of(model, weights, "serve")
    # The port first: a fault there should not come after seconds of loading.
    with _listening(host, port) as listener:
        networks = _networks([(model, weights), *(model_and_weights(text) for text in compare or [])], min_size, device)
        shown, number = listener.getsockname()[:2]
        screen = console()
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
        if not is_loopback(shown):
            warnings.warn(
                f"--host {host}: whoever reaches this machine's port {number} can use the page and its processors; "
                "there is no password and no encryption",
                stacklevel=2,
            )

        def ready() -> None:
            screen.print(f"The page is at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
            sys.stdout.flush()  # whoever waits for this line, waits behind a pipe

        jobs = Jobs()
        Server(create_app(networks, jobs, host), jobs, ready).run(sockets=[listener])
    # There is nothing left to do but Python's and torch's taking apart of themselves, which takes a second of work, and
    # longer or worse where a pass of a large network still runs in its thread.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they are answered when the networks are there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"--host: {host!r} is no address of this machine ({error.strerror})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the same port again, right after the last run
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OSError(f"--port: can't listen at {host}:{port} ({error.strerror}); choose another, 0 for any") from error
    return listener


def _networks(wanted: list[tuple[str, str | None]], min_size: int | None, device: str | None) -> list[Network]:
    from ..models import create_model
    from ..nn.layout import to_device
    from ..training.device import choose_device
    from ..web.networks import Network

    overrides: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    networks = []
    for number, (name, file) in enumerate(wanted):
        with said_as(COMPARED if number else {}):
            network = create_model(name, weights=file, **overrides)
        network = to_device(network, choose_device(device))
        networks.append(Network(network, None if file is None else _shown(file)))
    random = [network.model.name for network in networks if network.weights is None]
    if random:
        warnings.warn(
            f"{' and '.join(random)}: random weights, so what the page shows means nothing; give weights", stacklevel=2
        )
    return networks


def _shown(file: str) -> str:
    """A weights file's name with its folder's: files of ours are all called last.safetensors."""
    return "/".join(Path(file).parts[-2:])
