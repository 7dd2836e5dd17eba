"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path`` and puts it in place only when it is complete and on disk.

    A process that dies at any moment leaves the older file, or none, and never half of the new one.

    Example:
        >>> from torchdcn.training.files import write_atomically
        >>> write_atomically("/tmp/hello.txt", lambda file: file.write_text("hello"))
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's own files are for the owner only
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
