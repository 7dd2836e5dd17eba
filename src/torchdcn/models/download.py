"""Fetching a file over HTTP: it goes on where it was cut off, and gets its name when it is complete and right."""

from __future__ import annotations

import hashlib
import http.client
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Report = Callable[[int, int | None], None]  # bytes that are there, and in all

TIMEOUT = 30.0
"""Seconds without any data after which a server counts as stalled."""

ATTEMPTS = 20
"""Times that a transfer which breaks off is taken up again, if each brought something."""

_CHUNK = 1 << 18


class TransferError(OSError):
    """A file did not come; the message says why."""


def download(url: str, path: Path, sha256_prefix: str) -> None:
    """Fetches a file into ``path``, of which there is all or nothing.

    Until then it is ``path`` with ``.part`` at its end, from which a later call goes on, if the server knows ranges. A
    transfer that breaks off is taken up again at once, as long as each try brings something. Shows a bar in a
    terminal, and prints one line elsewhere (on stderr both). Callers see to it that no two do it at once.

    Args:
        url: ``http://`` or ``https://``; proxies are those of the environment (``HTTPS_PROXY``).
        path: Its folder exists.
        sha256_prefix: Hexadecimal digits that the file's SHA-256 starts with.

    Raises:
        TransferError: It did not come, or not the right one.
        OSError: It can't be written.
    """
    partial = path.with_name(f"{path.name}.part")
    resumed = partial.exists()
    with _shown(url) as report:
        _fetch(url, partial, report)
        if resumed and not has_hash(partial, sha256_prefix):  # what was there may have been of another file
            partial.unlink()
            _fetch(url, partial, report)
    if not has_hash(partial, sha256_prefix):
        size = partial.stat().st_size
        partial.unlink()
        raise TransferError(f"the {size} bytes that came are another file: their SHA-256 is not {sha256_prefix}...")
    partial.replace(path)


def has_hash(path: Path, sha256_prefix: str) -> bool:
    """Whether a file is there and its SHA-256 starts like this."""
    if not path.is_file():
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest().startswith(sha256_prefix.lower())


def _fetch(url: str, partial: Path, report: Report) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(partial)
        try:
            _transfer(url, partial, report)
        except _BrokenOffError as error:
            if _size(partial) <= before or attempt == ATTEMPTS:
                raise TransferError(f"{error}; a next try goes on from there") from error
        else:
            return


class _BrokenOffError(Exception):
    """It began and ended too soon."""


def _transfer(url: str, partial: Path, report: Report) -> None:
    """Appends to a part what is missing of it."""
    have = _size(partial)
    request = Request(url, headers={"User-Agent": "torchdcn", "Accept-Encoding": "identity"})  # noqa: S310 # checked
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urlopen(request, timeout=TIMEOUT)  # noqa: S310 # checked by the caller
    except HTTPError as error:
        error.close()
        if have and error.code == 416:  # nothing comes after what is there; whether that is right, its hash tells
            return
        raise TransferError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(_reason(error)) from error
    with response:
        start, total = _range(response, have)
        with partial.open("ab" if start else "wb") as file:
            have = start
            report(have, total)
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                report(have, total)
    if total is not None and have < total:
        raise _BrokenOffError(f"the server ended after {have} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from error


def _range(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where an answer starts in the file, and the file's length if the server tells it."""
    length = response.headers.get("Content-Length", "")
    rest = int(length) if length.isdigit() else None
    # A server without ranges sends everything again.
    resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if response.status == 206 and not resumes:
        raise TransferError(f"the server sent another part than the one from byte {have} on")
    start = have if resumes else 0
    return start, None if rest is None else start + rest


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no data came for {TIMEOUT:g} seconds"
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).strip().lower()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _shown(url: str) -> Iterator[Report]:
    if not sys.stderr.isatty():
        said = False

        def say(_: int, total: int | None) -> None:
            nonlocal said
            if not said:
                size = "" if total is None else f" ({total / 1e6:.1f} MB)"
                sys.stderr.write(f"downloading {url}{size}\n")
                said = True

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    times = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"downloading {url.rsplit('/', 1)[-1]}", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
