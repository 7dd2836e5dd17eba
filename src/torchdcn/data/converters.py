"""YOLO and Pascal VOC folders to COCO's format, by supervision's converters."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[int, int], None]
    Pairs = list[tuple[Path, Path]]  # pictures, each with its labels' file, which need not be there

VERSION = 1
"""Of what is written: a change makes older conversions in the cache be passed over."""
AT_ONCE = 32
"""Pictures that supervision reads together, at most: it parses data.yaml anew each time."""
MASKS = 2**28
"""Bytes of the masks that are read together. supervision gives each object one of the whole picture, a byte a pixel, so
that the 20 objects of a picture of 12 megapixels take 240 MB, and twice that while it puts them into one array: this
much is needed where a single picture has more."""
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # what both of supervision's readers take
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}


class Labelled(NamedTuple):
    """A picture and what its labels say; an object's ``label`` is an index of ``classes``."""

    picture: Path
    size: tuple[int, int]  # width, height
    objects: list[dict[str, Any]]
    classes: list[str]


class LabelsError(ValueError):
    """Labels that can't be converted; ``faults`` has a line for each fault, and the message the first of them."""

    def __init__(self, faults: list[str]) -> None:
        more = f" (and {len(faults) - 1} more: torchdcn train --check names all)" if len(faults) > 1 else ""
        super().__init__(faults[0] + more)
        self.faults = faults


def kind_of_folder(root: Path) -> str | None:
    """Which format a folder is in: ``"coco"``, ``"yolo"``, ``"voc"``, or None if it is none of them.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.converters import kind_of_folder
        >>> print(kind_of_folder(Path("/nowhere")))
        None
    """
    if any(root.glob("annotations/instances_*.json")):
        return "coco"
    if _yaml(root) is not None:
        return "yolo"
    if any(any(_voc_pairs(root, split)) for split in SPLITS):
        return "voc"
    return None


def converted(root: Path, cache: Path, progress: Progress | None = None, split: str = "train") -> Path:
    """A folder in COCO's format that stands for a YOLO or Pascal VOC folder; the pictures stay where they are.

    It is kept in the cache and used again as long as the files of the labels stay as they are.

    YOLO folders have a ``data.yaml`` with ``names``, ``train`` and ``val`` (folders of pictures; the labels are in the
    folder of the same path with ``labels`` for ``images``); lines are boxes or polygons. VOC folders have
    ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/{train,val}.txt``, or ``train`` and ``valid`` folders with each
    picture's ``.xml`` beside it.

    Args:
        root: The folder.
        cache: Where conversions are kept.
        progress: Called with (images converted, images in all).
        split: The one that is needed; all that are there are converted.

    Raises:
        FileNotFoundError: The folder has no pictures for the split.
        LabelsError: Labels that can't be read, or pictures or labels that a list names and that are not there; it names
            all of them.
        ValueError: A ``data.yaml`` that names no classes, or folders that are not there.
        ImportError: supervision isn't installed.
    """
    kind = kind_of_folder(root)
    sources: dict[str, Pairs] = {}
    missing: list[str] = []
    for each in SPLITS:
        pairs, faults = (_yolo_pairs(root, each), []) if kind == "yolo" else _voc_pairs(root, each)
        missing += faults
        if pairs:
            sources[each] = pairs
    if split in SPLITS and split not in sources and not missing:
        raise FileNotFoundError(_no_pictures(root, kind, split))
    target = cache / f"converted-v{VERSION}-{_fingerprint(root, kind, sources)}"
    if target.is_dir() and not missing:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as name:
        whole = Path(name) / "coco"
        _write(root, kind, sources, whole, progress, missing)
        try:
            whole.replace(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target


def _name(kind: str | None) -> str:
    return {"yolo": "YOLO", "voc": "Pascal VOC"}.get(kind or "", "COCO")


def _no_pictures(root: Path, kind: str | None, split: str) -> str:
    if kind == "yolo":
        return f"{_yaml(root)}: names no folder with pictures for {split}; write one, as in {split}: {split}/images"
    places = f"ImageSets/Main/{split}.txt to name them, or a folder {' or '.join(SPLITS[split])}"
    return f"{root}: a Pascal VOC folder without pictures for {split}; expected {places} with pictures and .xml files"


def _fingerprint(root: Path, kind: str | None, sources: dict[str, Pairs]) -> str:
    found = hashlib.sha256(f"{root.resolve()} {kind}".encode())
    yaml = _yaml(root)
    files = [file for pairs in sources.values() for pair in pairs for file in pair]
    for file in [*([yaml] if yaml else []), *files]:
        state = file.stat() if file.exists() else None
        found.update(f"{file} {state and (state.st_mtime_ns, state.st_size)}".encode())
    return found.hexdigest()[:16]


def _yaml(root: Path) -> Path | None:
    names = ("data.yaml", "data.yml", "dataset.yaml")
    return next((root / name for name in names if (root / name).is_file()), None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES) if folder.is_dir() else []


def _yolo_pairs(root: Path, split: str) -> Pairs:
    yaml = _yaml(root)
    if yaml is None:
        return []
    pairs = []
    for folder in _yolo_folders(root, yaml, split):
        parts = folder.parts
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        else:
            labels = folder.with_name("labels")
        if not labels.is_dir():
            labels = folder
        pairs += [(picture, labels / f"{picture.stem}.txt") for picture in _pictures(folder)]
    return pairs


def _yolo_folders(root: Path, yaml: Path, split: str) -> list[Path]:
    from_file = _supervision("yolo").utils.file.read_yaml_file
    try:
        content = from_file(file_path=str(yaml))
    except Exception as error:  # PyYAML's own classes, which need not be installed for this module to load
        raise ValueError(f"{yaml}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{yaml}: expected names, train and val, got {type(content).__name__}")
    if not isinstance(content.get("names"), (list, dict)):
        raise ValueError(f"{yaml}: expected names, a list of the classes, got {content.get('names')!r}")
    given = content.get(split, content.get("valid") if split == "val" else None)
    listed = [given] if isinstance(given, str) else given or []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{yaml}: {split}: expected a folder of pictures or a list of them, got {given!r}")
    folders = []
    for each in listed:
        plain = each.replace("\\", "/")
        while plain.startswith("../"):  # exported archives say ../train/images of the folder beside them
            plain = plain[3:]
        places = [root / str(content.get("path") or "") / each, root / each, root / plain]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise ValueError(f"{yaml}: {split}: there is no folder {each} (lists of pictures in files are not read)")
        folders.append(folder)
    return folders


def _voc_pairs(root: Path, split: str) -> tuple[Pairs, list[str]]:
    """A split's pictures, and what its list names in vain."""
    annotations, images = root / "Annotations", root / "JPEGImages"
    for name in SPLITS[split]:
        listing = root / "ImageSets" / "Main" / f"{name}.txt"
        if listing.is_file() and annotations.is_dir() and images.is_dir():
            stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
            by_stem = {picture.stem: picture for picture in _pictures(images)}
            pairs, faults = [], []
            for stem in stems:
                picture, label = by_stem.get(stem), annotations / f"{stem}.xml"
                if picture is None:
                    faults.append(f"{listing}: names {stem}, of which there is no picture in {images}")
                elif not label.is_file():  # a picture without objects has one too
                    faults.append(f"{listing}: names {stem}, of which there is no {label.name} in {annotations}")
                else:
                    pairs.append((picture, label))
            return pairs, faults
        folder = root / name
        if folder.is_dir() and any(folder.glob("*.xml")):
            return [(picture, picture.with_suffix(".xml")) for picture in _pictures(folder)], []
    return [], []


def _supervision(kind: str | None) -> Any:
    try:
        import supervision
        import supervision.utils.file
    except ImportError as error:
        raise ImportError(
            f"data: {_name(kind)} folders are read by supervision, which can't be imported ({error}); "
            "pip install supervision, or give data in COCO's format"
        ) from error
    return supervision


def _write(
    root: Path,
    kind: str | None,
    sources: dict[str, Pairs],
    target: Path,
    progress: Progress | None,
    missing: list[str],
) -> None:
    """Writes the annotation files of all splits, with one list of classes, if nothing is missing or wrong."""
    done, total = 0, sum(map(len, sources.values()))
    names: list[str] = []
    faults = [*missing]
    found: dict[str, list[Labelled]] = {split: [] for split in sources}
    for split, pairs in sources.items():
        for chunk in _chunks(pairs):
            for each in _read(root, kind, chunk):
                if isinstance(each, str):
                    faults.append(each)
                    continue
                found[split].append(each)
                names += [name for name in each.classes if name not in names]
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if faults:
        raise LabelsError(faults)
    if kind == "voc":
        names.sort()  # a folder's own order is that in which its files happen to name them
    (target / "annotations").mkdir(parents=True)
    for split, images in found.items():
        (target / split).mkdir()
        text = json.dumps(_coco(images, names))
        (target / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def _chunks(pairs: Pairs) -> Iterator[Pairs]:
    """Pictures to be read together, so few that their masks fit into ``MASKS``, or one."""
    chunk: Pairs = []
    total = 0
    for picture, label in pairs:
        size = _mask_bytes(picture, label)
        if chunk and (len(chunk) == AT_ONCE or total + size > MASKS):
            yield chunk
            chunk, total = [], 0
        chunk.append((picture, label))
        total += size
    if chunk:
        yield chunk


def _mask_bytes(picture: Path, label: Path) -> int:
    """What the masks of a picture take at most: its labels have an object in each line, or fewer."""
    if not label.is_file():
        return 0
    try:
        width, height = _size(picture)
    except ValueError:  # told when it is read
        return 0
    return width * height * (label.read_bytes().count(b"\n") + 1)


def _read(root: Path, kind: str | None, pairs: Pairs) -> list[Labelled | str]:
    """Some pictures with their labels, or what is wrong with those.

    supervision gives up at the first fault, so where it does each picture is read again, alone.
    """
    try:
        return list(_read_together(root, kind, pairs))
    except ValueError as error:
        if len(pairs) == 1:
            return [str(error)]
        return [each for pair in pairs for each in _read(root, kind, [pair])]


def _read_together(root: Path, kind: str | None, pairs: Pairs) -> Iterator[Labelled]:
    """Lets supervision read some pictures' labels: from a folder of links, for it reads folders whole."""
    supervision = _supervision(kind)
    with tempfile.TemporaryDirectory() as name:
        images, labels = Path(name) / "images", Path(name) / "labels"
        images.mkdir()
        labels.mkdir()
        links = []
        for number, (picture, label) in enumerate(pairs):
            links.append(images / f"{number:06d}{picture.suffix.lower()}")
            _link(picture, links[-1])
            if label.is_file():
                _link(label, labels / f"{number:06d}{label.suffix}")
        arguments = {"images_directory_path": str(images), "annotations_directory_path": str(labels)}
        try:
            if kind == "yolo":
                dataset = supervision.DetectionDataset.from_yolo(**arguments, data_yaml_path=str(_yaml(root)))
            else:
                dataset = supervision.DetectionDataset.from_pascal_voc(**arguments)
        except Exception as error:  # its readers let parsers' own errors through
            raise ValueError(f"{root}: {_explained(error, name, pairs)}") from error
        by_name = {Path(path).name: detections for path, detections in dataset.annotations.items()}
        for link, (picture, _) in zip(links, pairs, strict=True):
            objects, classes = list(_objects(by_name[link.name])), list(dataset.classes)
            for each in objects:  # newer versions of supervision have refused it already
                if not 0 <= each["label"] < len(classes):
                    raise ValueError(f"{picture}: its labels have the class {each['label']}, of {len(classes)} classes")
            yield Labelled(picture, _size(picture), objects, classes)


def _explained(error: Exception, folder: str, pairs: Pairs) -> str:
    """An error of supervision's in one line, with the names of our files for those of the links."""
    text = " ".join(str(error).split()) or type(error).__name__
    for number, (picture, label) in enumerate(pairs):
        if f"{number:06d}." in text:
            for kind, file in (("images", picture), ("labels", label)):
                text = text.replace(f"{folder}/{kind}/{number:06d}{file.suffix}", str(file))
            return f"{text} ({picture.name}, {label.name})"
    return f"labels that can't be read, between {pairs[0][1].name} and {pairs[-1][1].name} ({text})"


def _link(source: Path, link: Path) -> None:
    link.symlink_to(os.path.abspath(source))  # noqa: PTH100  # resolve() would follow the source's own links


def _objects(detections: Any) -> Iterator[dict[str, Any]]:
    from faster_coco_eval.core import mask as rle

    for row in range(len(detections)):
        x1, y1, x2, y2 = (float(value) for value in detections.xyxy[row])
        entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        mask = None if detections.mask is None else detections.mask[row]
        if mask is not None and mask.any():
            runs = rle.encode(mask.astype("uint8", order="F"))
            entry["area"] = float(mask.sum())
            entry["segmentation"] = {"size": list(mask.shape), "counts": _text(runs["counts"])}
        yield entry | {"label": int(detections.class_id[row])}


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def _coco(images: list[Labelled], names: list[str]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    ids = {name: number for number, name in enumerate(names, 1)}
    for number, image in enumerate(images, 1):
        width, height = image.size
        file_name = os.path.abspath(image.picture)  # noqa: PTH100
        content["images"].append({"id": number, "file_name": file_name, "width": width, "height": height})
        for each in image.objects:
            category_id = ids[image.classes[each.pop("label")]]
            place = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category_id}
            content["annotations"].append(place | each)
    return content


def _size(path: Path) -> tuple[int, int]:
    """Width and height as the picture is shown, which is how it was labelled."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(f"{path}: can't be read as an image: {' '.join(str(error).split())}") from None
    return (height, width) if turned else (width, height)
