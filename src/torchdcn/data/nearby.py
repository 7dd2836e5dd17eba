"""The file that a missing picture most probably means."""

from __future__ import annotations

import functools
import itertools
import os
import re
import time
import unicodedata
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from ..images import picture_suffixes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MOST_ENTRIES = 200_000
"""Entries of a folder that are looked at."""
MOST_FOLDERS = 30
"""Subfolders of a folder in which a name is looked for."""
FRESH = 1.0
"""Seconds for which a folder that has been listed is taken to be unchanged."""
PICTURE_FOLDERS = ("images", "data", "JPEGImages", "img", "imgs", "image", "pictures", "photos")
"""Names of folders that tools put the pictures into."""


class _Listing(NamedTuple):
    names: dict[str, list[str]]  # by _key
    stems: dict[str, list[str]]  # pictures, by the _key of the name without its suffix
    folders: list[str]


def resolved(folder: Path, file_name: str) -> Path:
    r"""The path of a picture that an annotation file names.

    Backslashes separate folders, as Windows writes them, unless there is a file with the name as it stands.

    Args:
        folder: Where the pictures are.
        file_name: As in the annotations; may be absolute or go through folders.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.nearby import resolved
        >>> resolved(Path("data"), "images\\a.jpg").as_posix()
        'data/images/a.jpg'
    """
    path = folder / file_name
    if "\\" not in file_name or os.path.isfile(path):  # noqa: PTH113  # never raises, as Path.is_file can
        return path
    plain = file_name.replace("\\", "/")
    if plain.startswith("/") and not os.path.isfile(plain):  # noqa: PTH113  # Windows' root is no root here
        plain = plain.lstrip("/")
    return folder / plain


def missing_file(path: Path) -> str:
    """Says in one line that a picture is missing, and which file was probably meant.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.nearby import missing_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.JPG").touch()
        >>> missing_file(folder / "a.jpg").replace(str(folder), "data")
        'data/a.jpg: there is no such image file; did you mean data/a.JPG?'
    """
    line = f"{path}: there is no such image file"
    if os.path.isdir(path):  # noqa: PTH112  # never raises, as Path.is_dir can
        return f"{line}; it is a folder"
    near = near_file(path)
    if near is not None:
        return f"{line}; did you mean {near}?{_form_hint(path, near)}"
    if os.path.islink(path):  # noqa: PTH114
        return f"{line}; it is a link to {os.readlink(path)}, which is not there"  # noqa: PTH115  # as it was written
    return line


def _form_hint(path: Path, near: Path) -> str:
    """Names what can't be seen: two names that differ in their Unicode form alone."""
    form = unicodedata.normalize("NFC", str(path))
    if form != unicodedata.normalize("NFC", str(near)):
        return ""
    decomposed = str(near) != form
    return f" (its name is in Unicode's {'NFD' if decomposed else 'NFC'}, which looks the same)"


def near_file(path: Path) -> Path | None:
    """Finds the file that a missing path most probably means, or None.

    Tried are other upper and lower case in any part of the path, the other Unicode form, percent encodings such as
    ``%20``, backslashes as separators, spaces for underscores, another suffix of a picture, folders too many
    (``images/a.jpg`` where ``a.jpg`` is in the folder), and a folder missing (``images``, a doubled ``train/train``, or
    any one folder below that has a file of that name).

    A folder is listed once a second at most, and at most ``MOST_ENTRIES`` of its entries, so that thousands of missing
    pictures can be asked for.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.nearby import near_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "train" / "train").mkdir(parents=True)
        >>> (folder / "train" / "train" / "my picture.jpg").touch()
        >>> near_file(folder / "train" / "my%20picture.jpg").relative_to(folder).as_posix()
        'train/train/my picture.jpg'
    """
    try:
        base = next(parent for parent in path.parents if parent.is_dir())
        rest = path.relative_to(base)
        return next(_candidates(base, rest), None)
    except (OSError, ValueError, StopIteration):  # a name too long or with a null, a folder that may not be read
        return None


def _candidates(base: Path, rest: Path) -> Iterator[Path]:
    """Files near ``base / rest``, the likely ones first; ``base`` is the last folder of the path that is there."""
    for parts in _spellings(rest.parts):
        for start in range(len(parts)):  # the whole, then without leading folders
            yield from _follow(base, parts[start:])
        for name in _picture_folders(base):
            yield from _follow(base / name, parts)
            yield from _follow(base / name, parts[-1:])
        end = "/".join(parts)
        for name in _subfolders(base):
            if os.path.isfile(f"{base}/{name}/{end}"):  # noqa: PTH113  # text: five times as fast as Path
                yield base / name / end
        if base.parent != base:  # the last folder itself is too many, or another one is meant
            yield from _follow(base.parent, parts)
            yield from _follow(base.parent, parts[-1:])
            for name in _picture_folders(base.parent):
                if base.parent / name != base:
                    yield from _follow(base.parent / name, parts)
                    yield from _follow(base.parent / name / base.name, parts)


def _spellings(parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A path's parts as they stand, and with encoded separators and backslashes taken for separators."""
    whole = "/".join(parts)
    seen = {tuple(parts)}
    yield tuple(parts)
    for text in (whole.replace("\\", "/"), unquote(whole).replace("\\", "/"), re.split(r"[?#]", whole)[0]):
        other = tuple(part for part in text.split("/") if part not in ("", ".", ".."))
        if other and other not in seen:
            seen.add(other)
            yield other


def _follow(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Goes from a folder through parts that need not be spelled as on the disk; gives the file if there is one."""
    for part in parts[:-1]:
        if part in (".", ".."):
            return
        if not (folder / part).is_dir():
            near = [name for name in _spelled(folder, part) if (folder / name).is_dir()]
            if not near:
                return
            part = near[0]  # the same part, as the disk spells it
        folder = folder / part
    for name in [parts[-1], *_spelled(folder, parts[-1]), *_other_suffix(folder, parts[-1])]:
        if (folder / name).is_file():
            yield folder / name


def _spelled(folder: Path, name: str) -> list[str]:
    """A folder's entries that are this name but for its spelling, the most similar first."""
    listing = _listing(folder)
    found = listing.names.get(_key(name), []) if listing else []
    return sorted(found, key=lambda other: (_differences(name, other), other))


def _other_suffix(folder: Path, name: str) -> list[str]:
    """A folder's pictures of this name with another suffix, or with one where the name has none."""
    listing = _listing(folder)
    if listing is None:
        return []
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  # of a name that need not be a path
    known = suffix.lower() in picture_suffixes()
    found = listing.stems.get(_key(stem if known else name), [])
    return sorted(found, key=lambda other: (_differences(stem, os.path.splitext(other)[0]), other))  # noqa: PTH122


def _picture_folders(folder: Path) -> list[str]:
    """The subfolders that pictures are probably in: those with such names, and one named as the folder itself."""
    listing = _listing(folder)
    if listing is None:
        return []
    wanted = [*(name.casefold() for name in PICTURE_FOLDERS), folder.name.casefold()]
    there = [name for name in listing.folders if name.casefold() in wanted]
    return sorted(there, key=lambda name: (wanted.index(name.casefold()), name))


def _subfolders(folder: Path) -> list[str]:
    listing = _listing(folder)
    return listing.folders[:MOST_FOLDERS] if listing else []


def _key(name: str) -> str:
    """What names have in common that differ in case, Unicode form, encoding, or kinds of spaces."""
    for _ in range(2):  # some are encoded twice: %2520
        if "%" not in name:
            break
        name = unquote(name)
    if name.isascii():
        plain = name.lower()
    else:
        plain = unicodedata.normalize("NFKC", name).casefold()
        plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Cf")  # such as a byte order mark
        plain = unicodedata.normalize("NFKC", plain)
    return re.sub(r"[\s_+]+", "_", plain.strip())


def _differences(name: str, other: str) -> tuple[bool, bool, bool]:
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return not same, unquote(name) != unquote(other), name.casefold() != other.casefold()


def _listing(folder: Path) -> _Listing | None:
    """A folder's entries, or None where it can't be read; from memory if they were read before and did not change."""
    return _listed(str(folder), int(time.monotonic() / FRESH))


@functools.lru_cache(256)
def _listed(folder: str, second: int) -> _Listing | None:  # noqa: ARG001  # the second is there to forget
    try:
        modified = os.stat(folder).st_mtime_ns  # noqa: PTH116  # a path that is text already
    except OSError:
        return None
    return _read(folder, modified)


@functools.lru_cache(32)
def _read(folder: str, modified: int) -> _Listing | None:  # noqa: ARG001  # it tells a folder from its older self
    names: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    folders: list[str] = []
    suffixes = picture_suffixes()
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, MOST_ENTRIES):
                if entry.name.startswith("."):
                    continue
                names[_key(entry.name)].append(entry.name)
                stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122
                if suffix.lower() in suffixes:
                    stems[_key(stem)].append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError:
        return None
    return _Listing(dict(names), dict(stems), sorted(folders))
