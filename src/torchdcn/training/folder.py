"""The folder of a run: one run's at a time, checked before anything is written, left clean by one that failed."""

from __future__ import annotations

import shutil
import warnings
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from ..files import make_folder, remove_leftovers
from . import checkpoint, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

ATOMIC = ("config.json", "metrics.json", record.NAME, "last.safetensors", checkpoint.NAME)
WRITTEN = (*ATOMIC, checkpoint.PREVIOUS, checkpoint.DAMAGED, "events.out.tfevents.*")
LOCK = ".lock"
SECONDS_FOR_THE_LOCK = 10.0  # a killed run's workers may live on for as long, and hold it


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """While no other run works in the folder, which is made for it, and taken away again if nothing comes to be in it.

    Raises:
        OSError: The folder can't be made or written, or another run is at work in it.
    """
    from filelock import FileLock, Timeout

    existed = path.exists()
    make_folder(path, "out")
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=SECONDS_FOR_THE_LOCK)
    except Timeout:
        raise OSError(
            f"out: {path} is another run's, which is still at work; wait for it, stop it, or choose another folder"
        ) from None
    except (
        OSError,
        NotImplementedError,
    ) as error:  # of a file system without locks: the second, where filelock 3 says so
        warnings.warn(f"out: {path} can't be locked ({error}): see to it that no other run writes there", stacklevel=2)
    try:
        yield
    finally:
        with suppress(OSError):  # before it is released, or it could be another run's by now; Windows won't have it so
            (path / LOCK).unlink()
        lock.release()
        if not existed and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


class RunFolder:
    """Makes the folder; a context manager.

    A run that fails before its first checkpoint (``saved``) takes away what it has written and puts an earlier run back
    in its place; but figures that show how a loss went astray (FloatingPointError) stay.

    Args:
        path: The folder.
        resumed: Whether the run goes on from a checkpoint in it. If not, what an earlier run has left there is moved
            into a folder of its own (``moved_to``), so that no run is ever lost by starting another.

    Raises:
        OSError: The folder can't be made or written.
    """

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.saved = resumed
        self.existed = path.exists()
        self.moved_to: Path | None = None
        make_folder(path, "out")
        for name in ATOMIC:
            remove_leftovers(path / name)
        if not resumed:
            self._move_earlier()

    def _files(self) -> list[Path]:
        return sorted(file for pattern in WRITTEN for file in self.path.glob(pattern))

    def _move_earlier(self) -> None:
        earlier = self._files()
        if not earlier:
            return
        newest = max(file.stat().st_mtime for file in earlier)
        name = datetime.fromtimestamp(newest, tz=timezone.utc).strftime("run-%Y%m%d-%H%M%S")
        self.moved_to = self.path / name
        count = 1
        while self.moved_to.exists():
            count += 1
            self.moved_to = self.path / f"{name}-{count}"
        self.moved_to.mkdir()
        for file in earlier:
            shutil.move(file, self.moved_to / file.name)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.saved or isinstance(error, FloatingPointError):
            return
        for file in self._files():
            file.unlink()
        if self.moved_to is not None:
            for file in self.moved_to.iterdir():
                shutil.move(file, self.path / file.name)
            self.moved_to.rmdir()
        if not self.existed and not any(self.path.iterdir()):
            self.path.rmdir()
