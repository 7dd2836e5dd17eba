"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def write_atomically(path: str | Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Lets ``write`` make a temporary file and puts it in ``path``'s place only when it is complete and on disk.

    A process that dies at any moment leaves the older file, or none, and never half of the new one.

    Args:
        path: The file. Its folder is made if need be.
        write: Called with the temporary file, of the same name in a folder of its own beside ``path``. (A writer may
            have temporary files too: safetensors has.)
        keep: What the older file is called from then on, in the same folder; by default it is gone.

    Example:
        >>> from torchdcn.files import write_atomically
        >>> write_atomically("/tmp/hello.txt", lambda file: file.write_text("hello"))
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = folder / path.name
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers make files that are the owner's alone
        if keep is not None and path.exists():
            _give_second_name(path, keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_second_name(path: Path, name: Path) -> None:
    """Makes ``name`` the file ``path`` too; there is a whole file called ``path`` all the while."""
    link = path.parent / f".{path.name}.link"
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # a file system without hard links: for a moment the file has its second name only
        path.replace(name)
        return
    link.replace(name)
    link.unlink(missing_ok=True)  # a rename does nothing where both names are already those of one file


def _sync_folder(folder: Path) -> None:
    # The new name itself must survive a power cut. Some systems can't open a folder: they have no such promise to give.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes have left of :func:`write_atomically` for ``path``."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def make_folder(path: str | Path, argument: str) -> Path:
    """Makes a folder that files will be written to, so that a long command fails at its start if it can't.

    Args:
        path: The folder.
        argument: What the caller calls it.

    Raises:
        OSError: It can't be made or written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{argument}: {path} is a file, expected a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise type(error)(f"{argument}: {path} can't be written ({error.strerror or error})") from error
    return path


def check_file(path: str | Path, argument: str) -> None:
    """Sees to it that a file can be written, making its folder, before the work that it is to hold.

    Raises:
        OSError: It is a folder, or its folder can't be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{argument}: {path} is a folder, expected a file")
    make_folder(path.parent, argument)


@contextmanager
def exclusive_lock(path: str | Path, *, timeout: float = -1, notice: str = "") -> Iterator[None]:
    """Holds a lock file for the length of the block, which one process at a time can.

    Args:
        path: The lock file, in a folder that is there.
        timeout: How many seconds to wait for a process that holds it; -1: as long as it takes.
        notice: A line for standard error if another process still holds it after a second.

    Raises:
        TimeoutError: Another process holds it.
        OSError: The file can't be written, or the file system has no locks.

    Example:
        >>> from torchdcn.files import exclusive_lock
        >>> with exclusive_lock("/tmp/hello.lock"):
        ...     print("alone")
        alone
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=1 if notice else timeout)
        except Timeout:
            if not notice:
                raise
            sys.stderr.write(f"{notice}\n")
            lock.acquire(timeout=timeout)
    except Timeout:
        raise TimeoutError(f"{path} is locked by another process") from None
    except NotImplementedError as error:  # filelock 3 raises this on a file system without locks
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
