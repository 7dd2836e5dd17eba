"""YOLO's ``data.yaml``: the classes, and where the pictures of each split are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from ..segmentation import shorten
from ..text import read_text
from .coco import SAME
from .labels import LabelsError, canonical_split, is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLITS = tuple(name for names in SAME for name in names)
SETTINGS = {"names", "nc", "path", "download", "kpt_shape", "kpt_names", "flip_idx", "roboflow", "channels", "colors"}
"""Keys that are no splits."""
NOTHING = ("", "~", "null", "none")


@dataclass
class DataYaml:
    """What a ``data.yaml`` says.

    Attributes:
        path: The file.
        names: The classes by their index.
        keypoint_numbers: How many numbers of key points follow a box on a line, 0 without ``kpt_shape``.
        splits: Where the pictures of each split are: folders, or text files that list them, as they are written.
        others: The same for keys that may be splits of the user's own.
        split_faults: Splits that don't say where their pictures are, and what is wrong there.
        base: The value of ``path``.
        faults: What else is wrong with it, a line each.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    keypoint_numbers: int = 0
    splits: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    split_faults: dict[str, str] = field(default_factory=dict)
    base: str = ""
    faults: list[str] = field(default_factory=list)

    def find_place(self, text: str, *folders: Path) -> tuple[Path | None, bool]:
        """Finds a folder or file that the YAML file, or a list of pictures, names.

        Tried are the ``folders``, ``path``, and the YAML file's own folder. Exported archives say ``../train/images``
        of the folder beside the YAML file. A path of another computer is looked for by its end.

        Returns:
            The place, or None; and whether only the end of its path was found.
        """
        root = self.path.parent
        bases = [*folders, *([root / _expand(self.base)] if self.base else []), root]
        slashed = text.replace("\\", "/")
        for spelling in dict.fromkeys([text, slashed]):
            inside = re.sub(r"^(\.\.?/)+", "", spelling)
            places = [base / _expand(spelling) for base in bases]
            if spelling != inside:  # the archive's own folder before one beside the archive
                places = [base / inside for base in bases] + places
            found = next(filter(_exists, places), None)
            if found is not None:
                return found, False
        return next(filter(_exists, _ends(root, slashed)), None), True


def _expand(text: str) -> Path:
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def _ends(root: Path, text: str) -> Iterator[Path]:
    """Places in a folder that a path of another computer may stand for, the longest first."""
    parts = PurePosixPath(text).parts
    own = root.resolve().name
    is_absolute = text.startswith("/") or re.match(r"[A-Za-z]:/", text)
    for start in range(1, len(parts)):
        is_below = parts[start - 1] == own or parts[:start] == ("data",)  # as older exports of CVAT say
        if is_below or (is_absolute and len(parts) - start > 1):
            yield root.joinpath(*parts[start:])


def find_data_yaml(root: Path) -> Path | None:
    """The YAML file that describes a folder's splits, or None.

    Raises:
        LabelsError: Several do.
    """
    if not root.is_dir():
        return None
    known = next((root / name for name in FILES if (root / name).is_file()), None)
    if known is not None:
        return known
    yamls = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    found = [path for path in yamls if not is_hidden(path.name) and path.is_file() and _names_splits(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise LabelsError([f"{root}: {names} all name classes and splits; rename the one to use to data.yaml"])
    return found[0] if found else None


def _names_splits(path: Path) -> bool:
    try:
        content = _load(path)
    except (LabelsError, OSError):
        return False
    has_names = isinstance(content, dict) and isinstance(content.get("names"), (list, dict))
    return has_names and any(str(key).lower() in SPLITS for key in content)


def read_data_yaml(path: Path) -> DataYaml:
    r"""Reads a ``data.yaml``, all of whose values stay text: a class may be called ``no``, ``1`` or ``null``.

    Raises:
        LabelsError: It is no YAML file, or has no classes. Lesser faults are in ``faults``.

    Example:
        >>> import tempfile
        >>> from torchdcn.data.formats.yolo_yaml import read_data_yaml
        >>> path = Path(tempfile.mkdtemp()) / "data.yaml"
        >>> _ = path.write_text("train: images/train\nvalid: images/val\nnames: {1: yes, 0: no}\n")
        >>> found = read_data_yaml(path)
        >>> found.names, found.splits
        (['no', 'yes'], {'train': ['images/train'], 'val': ['images/val']})
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise LabelsError([f"{path}: expected names, train and val, got {shorten(content)}"])
    found = DataYaml(path)
    found.names = _read_names(path, content.get("names"), found.faults)
    count = str(content.get("nc", "")).strip()
    if count and not (count.isdecimal() and int(count) == len(found.names)):
        found.faults.append(f"{path}: nc is {shorten(count)}, but names has {len(found.names)} classes")
    if "kpt_shape" in content:
        shape = content["kpt_shape"]
        sizes = [int(size) for size in shape if str(size).isdecimal()] if isinstance(shape, list) else []
        found.keypoint_numbers = sizes[0] * sizes[1] if len(sizes) == 2 == len(shape) else 0
        if not found.keypoint_numbers:
            found.faults.append(f"{path}: kpt_shape: expected two whole numbers above 0, got {shorten(shape)}")
    base = content.get("path", "")
    found.base = "" if not isinstance(base, str) or base.lower() in NOTHING else base.replace("\\", "/")
    _read_splits(content, found)
    return found


def _read_splits(content: dict[str, Any], found: DataYaml) -> None:
    for key, value in sorted(content.items(), key=lambda item: canonical_split(item[0]) != item[0]):
        is_empty = value == [] or (isinstance(value, str) and value.strip().lower() in NOTHING)
        if key in SETTINGS or is_empty or PurePosixPath(key).name != key:
            continue
        places = [value] if isinstance(value, str) else value
        is_known = key.lower() in SPLITS
        if not isinstance(places, list) or not all(isinstance(each, str) and each.strip() for each in places):
            if is_known:
                wanted = "expected a folder of pictures or a list of them"
                found.split_faults[canonical_split(key)] = f"{found.path}: {key}: {wanted}, got {shorten(value)}"
            continue
        name = canonical_split(key)
        if name in found.splits:  # as valid beside val
            name = key
        (found.splits if is_known else found.others)[name] = [each.strip() for each in places]


def _read_names(path: Path, given: Any, faults: list[str]) -> list[str]:
    if not isinstance(given, (list, dict)) or not given:
        raise LabelsError([f"{path}: expected names, a list of the classes, got {shorten(given)}"])
    names = given
    if isinstance(given, dict):
        keys = [key.strip() for key in given]
        wrong = [key for key in keys if not key.isdecimal()]
        if wrong:
            raise LabelsError([f"{path}: names: expected whole numbers as keys, got {shorten(wrong[0])}"])
        by_index = {int(key): name for key, name in given.items()}
        missing = next((index for index in range(len(given)) if index not in by_index), None)
        if missing is not None:
            rest = f"names has the keys {', '.join(map(str, sorted(by_index)))}"
            raise LabelsError([f"{path}: {rest}: {missing} is missing, of {len(given)} classes"])
        names = [by_index[index] for index in range(len(given))]
    plain = [name.strip() if isinstance(name, str) else name for name in names]
    seen: dict[str, int] = {}
    for index, name in enumerate(plain):
        if not isinstance(name, str) or not name:
            raise LabelsError([f"{path}: names: expected the name of the class {index}, got {shorten(name)}"])
        if name in seen:
            faults.append(f"{path}: names: {name!r} is there twice, as the classes {seen[name]} and {index}")
        seen.setdefault(name, index)
    return plain


def _load(path: Path) -> Any:
    try:
        text = read_text(path)
        return _to_plain(yaml.compose(text, Loader=yaml.BaseLoader), {})
    except (yaml.YAMLError, RecursionError) as error:
        raise LabelsError([f"{path}: not a YAML file ({' '.join(str(error).split())})"]) from None
    except ValueError as error:
        raise LabelsError([str(error)]) from None


def _to_plain(node: Any, done: dict[int, Any]) -> Any:
    """Lists, dicts and text of YAML's nodes, each once: aliases may stand for one node many times."""
    if node is None or id(node) in done:
        return done.get(id(node))
    if isinstance(node, yaml.MappingNode):
        found: Any = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: expected text as a key")
            if key.value in found:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            found[key.value] = _to_plain(value, done)
    elif isinstance(node, yaml.SequenceNode):
        found = [_to_plain(each, done) for each in node.value]
    else:
        found = node.value
    done[id(node)] = found
    return found
