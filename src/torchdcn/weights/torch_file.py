"""Reading ``.pth`` files of others without running what they hold."""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from .messages import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PICKLES = 4  # that a file from before PyTorch 1.6 begins with: two numbers, the machine, and what was saved


class Inert:
    """What stands for an object that is not read: it can be made from anything, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Ignores what the object would be made from."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignores what the object would hold."""


class _AsDict:
    def __new__(cls, *entries: Any) -> Any:
        return OrderedDict(entries[0]) if entries and isinstance(entries[0], dict) else OrderedDict()


class _AsList:
    def __new__(cls, *entries: Any) -> Any:
        return list(entries[0]) if entries and isinstance(entries[0], list) else []


# torch fills plain containers only, so containers of other classes come as plain ones.
STAND_INS: dict[str, type] = {
    "addict.addict.Dict": _AsDict,
    "collections.defaultdict": _AsDict,
    "collections.deque": _AsList,
    "mmcv.utils.config.ConfigDict": _AsDict,
    "mmengine.config.config.ConfigDict": _AsDict,
}


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, with ``weights_only=True``.

    Checkpoints of trainers hold more than tensors: logs, configurations, numbers of NumPy. Each class and function that
    torch does not know to be safe is replaced by :class:`Inert` while the file is read, so no code is run, or even
    imported, by it. Files from before PyTorch 1.6 are read too.

    Args:
        path: An existing file.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged, or refers to what no weights file needs, such as ``os.system``.
    """
    damaged = f"{path}: damaged, or not a weights file of torch"
    try:
        stand_ins: list[Any] = [(STAND_INS.get(name, Inert), name) for name in _find_globals(path)]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what can't be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message teaches how to run what the file holds
        raise ValueError(_explain_refusal(path, str(error)) or damaged) from error
    except OSError:
        raise
    except (RuntimeError, EOFError, LookupError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(f"{damaged}: {first_line(error)}") from error
    except (ValueError, ArithmeticError, struct.error, zipfile.BadZipFile, zlib.error) as error:  # meaningless bytes
        raise ValueError(damaged) from error


def _explain_refusal(path: Path, text: str) -> str | None:
    if "is blocked" in text:
        name = text.split("GLOBAL ", 1)[-1].split()[0]
        return f"{path}: refers to {name}, which no weights file needs; nothing of it was run, and nothing was loaded"
    if "nsupported" in text or "Can only" in text or "Trying to call" in text:
        return f"{path}: holds Python objects that are not loaded; save the state_dict alone"
    return None


def _find_globals(path: Path) -> set[str]:
    """All classes and functions that a file refers to, by name, found without loading any."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {name for _ in range(_PICKLES) for name in _globals_of_pickle(file)}
        with zipfile.ZipFile(file) as archive:
            found: set[str] = set()
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    with archive.open(name) as stream:
                        found |= set(_globals_of_pickle(stream))
            return found


def _globals_of_pickle(stream: Any) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            # torch.save writes Python 2's names.
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            else:
                module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            yield f"{module}.{name}"
