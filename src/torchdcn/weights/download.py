"""Fetching a file over HTTP: it gets its name when it is complete and right."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from http.client import IncompleteRead
from typing import TYPE_CHECKING, Any

from ..files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.progress import Progress

TIMEOUT = 30.0
"""Seconds without any data after which a server counts as stalled."""

_CHUNK = 1 << 18


class TransferError(OSError):
    """A file did not come; the message says why."""


def download(url: str, path: Path, sha256_prefix: str) -> None:
    """Fetches a file into ``path``: all of it, or nothing.

    Shows a bar in a terminal, and prints one line elsewhere, both on stderr. Callers see to it that no two do it at
    once.

    Args:
        url: ``http://`` or ``https://``; proxies are those of the environment (``HTTPS_PROXY``).
        path: Its folder exists.
        sha256_prefix: Hexadecimal digits that the file's SHA-256 starts with.

    Raises:
        TransferError: It did not come, or not the right one.
        OSError: It can't be written.
    """

    def fetch(temporary: Path) -> None:
        _fetch(url, temporary)
        if not has_hash(temporary, sha256_prefix):
            size = temporary.stat().st_size
            raise TransferError(f"the {size} bytes that came are another file: their SHA-256 is not {sha256_prefix}...")

    write_atomically(path, fetch)


def has_hash(path: Path, sha256_prefix: str) -> bool:
    """Whether a file is there and its SHA-256 starts like this."""
    import pooch

    return path.is_file() and pooch.file_hash(str(path)).startswith(sha256_prefix.lower())


def _fetch(url: str, path: Path) -> None:
    import pooch  # lazily: with requests it takes a while, and only the first use of a file needs it
    from requests import RequestException

    headers = {"User-Agent": "torchdcn", "Accept-Encoding": "identity"}
    with _progress(url) as progress:
        get = pooch.HTTPDownloader(progressbar=progress, chunk_size=_CHUNK, timeout=TIMEOUT, headers=headers)
        try:
            get(url, str(path), None)
        except RequestException as error:
            raise TransferError(_reason(error)) from error


def _reason(error: Any) -> str:
    """Why a request failed, in a few words: requests' own are those of three libraries within each other."""
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(cause, TimeoutError):
        return f"no data came for {TIMEOUT:g} seconds"
    if isinstance(cause, IncompleteRead) and cause.expected is not None:
        have: Any = cause.partial  # a count in urllib3's
        return f"the server ended after {have} of {have + cause.expected} bytes"
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).strip().lower()


class _Line:
    """tqdm's interface, which pooch calls, for a stream that no terminal reads: one line at the start."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _begin(self, total: int) -> None:
        size = f" ({total / 1e6:.1f} MB)" if total else ""
        sys.stderr.write(f"downloading {self.url}{size}\n")

    total = property(fset=_begin)

    def update(self, count: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class _Bar(_Line):
    """The same for a terminal: a bar."""

    def __init__(self, url: str, bars: Progress) -> None:
        super().__init__(url)
        self.bars, self.task = bars, bars.add_task(f"downloading {url.rsplit('/', 1)[-1]}", total=None)

    total = property(fset=lambda self, total: self.bars.update(self.task, total=total or None))

    def update(self, count: int) -> None:
        self.bars.advance(self.task, count)

    def reset(self) -> None:
        self.bars.update(self.task, completed=0)


@contextmanager
def _progress(url: str) -> Iterator[_Line]:
    if not sys.stderr.isatty():
        yield _Line(url)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    times = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(url, bars)
