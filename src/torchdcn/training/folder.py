"""The folder of a run: locked by one run at a time, and cleaned up after a run that fails."""

from __future__ import annotations

import shutil
import warnings
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from ..files import exclusive_lock, make_folder, remove_leftovers
from . import checkpoint, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

ATOMIC = ("config.json", "metrics.json", record.NAME, "last.safetensors", checkpoint.NAME)
WRITTEN = (*ATOMIC, checkpoint.PREVIOUS, checkpoint.DAMAGED, "events.out.tfevents.*")
LOCK = ".lock"
LOCK_TIMEOUT = 10.0  # seconds; the workers of a killed run may hold the lock for that long


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Keeps other runs out of a folder for the length of the block.

    The folder is made if need be, and removed at the end if it was made here and is empty.

    Raises:
        OSError: The folder can't be made or written, or another run works in it.
    """
    existed = path.exists()
    make_folder(path, "out")
    with ExitStack() as stack:
        if not existed:
            stack.callback(_remove_if_empty, path)
        try:
            stack.enter_context(exclusive_lock(path / LOCK, timeout=LOCK_TIMEOUT))
        except TimeoutError:
            raise OSError(
                f"out: {path} is another run's, which is still at work; wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:  # a file system without locks
            warnings.warn(
                f"out: {path} can't be locked ({error}): see to it that no other run writes there", stacklevel=2
            )
        try:
            yield
        finally:
            # Before the lock is released: afterwards the file could be another run's. Windows refuses, and keeps it.
            with suppress(OSError):
                (path / LOCK).unlink()


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class RunFolder:
    """The folder that a run writes to; a context manager.

    If the run fails before its first checkpoint (``saved``), its files are deleted and those of an earlier run moved
    back. After a FloatingPointError they stay: the figures show how the loss diverged.

    Args:
        path: The folder, which is made if need be.
        resumed: Whether the run goes on from a checkpoint in it. If not, the files of an earlier run are moved into a
            subfolder (``moved_to``), so that no run is ever lost by starting another.

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
        if not self.existed:
            _remove_if_empty(self.path)
