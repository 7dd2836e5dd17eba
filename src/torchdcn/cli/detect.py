"""``torchdcn detect``."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import bad_usage, console, verb
from .options import AMP, Amp, Device, Model, Weights, model_of, one_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..detections import Detections


@verb(
    "detect",
    example="torchdcn detect street.jpg --model mask_rcnn_r18_fpn_mdconv_c3-c5 --weights runs/my/last.safetensors "
    "--out found",
)
def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    model: Model = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures with boxes and masks.")] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="File for the detections as COCO results; image_id is the number that a picture's "
                     "name ends with if all have one of their own, else its place among the pictures, from 1."),
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Detections must score more than this.")] = 0.05,
    draw_threshold: Annotated[float, typer.Option(min=0, max=1, help="Drawn is what scores more than this.")] = 0.5,
    min_size: Annotated[int | None, typer.Option(min=16, help="Short side; by default the weights' own.")] = None,
    device: Device = None,
    amp: Amp = "none",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Leave out pictures that can't be read, and exit with 1 at the "
                           "end; by default nothing is done then.")
    ] = False,
) -> None:  # fmt: skip
    """Finds objects in pictures: draws them (--out) and writes them down (--json)."""
    from ..detector import Detector
    from ..files import check_file, make_folder
    from ..images import load_image
    from ..models import create_model
    from ..nn.layout import channels_last
    from ..training.device import choose_device
    from ..training.progress import counter

    one_of(amp, AMP, "--amp")
    model = model_of(model, weights, "detect")
    paths = _pictures(images)
    names = output_names(paths)
    _refuse_to_overwrite(paths, [] if out is None else [out / name for name in names], "out", "choose another folder")
    _refuse_to_overwrite(paths, [] if json_ is None else [json_], "json", "choose another name")
    faults = _faults(paths)  # all of them first: a fault in the last picture should not leave the work of the others
    if faults and (len(faults) == len(paths) or not keep_going):
        raise OSError(_named(faults, len(paths)))
    overrides: dict[str, Any] = {"box_score_thresh": score_threshold}
    overrides |= {} if min_size is None else {"min_size": min_size}
    network = channels_last(create_model(model, weights=weights, **overrides))
    if weights is None:
        warnings.warn(f"{model} has random weights, so its detections mean nothing; give --weights", stacklevel=2)
    detector = Detector(network, device=choose_device(device), score_threshold=score_threshold, amp=amp)
    if out is not None:
        make_folder(out, "out")
    if json_ is not None:
        check_file(json_, "json")
    ids = image_ids(paths)
    results: list[dict[str, Any]] = []
    screen = console()
    with counter("detecting", screen) as progress:
        for number, (path, image_id, name) in enumerate(zip(paths, ids, names, strict=True), start=1):
            if path in faults:
                screen.print(f"{path}: left out", soft_wrap=True, markup=False)
                continue
            picture = load_image(path)
            found = detector(picture)
            results += [{**result, "file_name": str(path)} for result in found.to_coco(image_id)]
            if out is not None:
                _save(out / name, picture, found, draw_threshold)
            screen.print(f"{path}: {summary(found, draw_threshold)}", soft_wrap=True, markup=False)
            progress(number, len(paths))
    if json_ is not None:
        from ..files import write_atomically

        write_atomically(json_, lambda file: file.write_text(json.dumps(results) + "\n", encoding="utf-8"))
        screen.print(f"{len(results)} detections in {json_}", markup=False)
    if out is not None:
        screen.print(f"Pictures in {out}", markup=False)
    if json_ is None and out is None:
        screen.print("Nothing was kept: --out FOLDER keeps the pictures, --json FILE the detections")
    if faults:
        raise OSError(_named(faults, len(paths)))


def _pictures(given: list[Path]) -> list[Path]:
    from ..images import is_picture

    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if is_picture(p))
            if not inside:
                raise FileNotFoundError(f"{path}: there are no pictures in this folder")
            paths += inside
        else:
            paths.append(path)
    if not paths:
        bad_usage("IMAGE: expected at least one picture")
    return paths


def _faults(paths: list[Path]) -> dict[Path, str]:
    """What is wrong with the pictures that can't be read."""
    from ..images import load_image

    faults = {}
    for path in paths:
        try:
            load_image(path)
        except (OSError, ValueError) as error:  # noqa: PERF203  # beside a picture's decoding it is nothing
            faults[path] = str(error)
    return faults


def _named(faults: dict[Path, str], total: int) -> str:
    if len(faults) == 1:
        return next(iter(faults.values()))
    first = [text.removeprefix("image: ") for text in faults.values()][:3]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f"image: {len(faults)} of {total} pictures can't be read: {'; '.join(first)}{more}"


def image_ids(paths: list[Path]) -> list[int]:
    """The pictures' COCO ids: the numbers their names end with, as in COCO's own files, or else 1, 2, 3."""
    digits = [path.stem[len(path.stem.rstrip("0123456789")) :] for path in paths]
    numbers = [int(text) for text in digits if text]
    if len(set(numbers)) == len(paths):
        return numbers
    return list(range(1, len(paths) + 1))


def output_names(paths: list[Path]) -> list[str]:
    """A file name for each picture; pictures of one name from several folders are numbered."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, count = path.stem, 1
        while name.casefold() in taken:  # some file systems hold A.png and a.png for one
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names


def _refuse_to_overwrite(paths: list[Path], written: list[Path], argument: str, instead: str) -> None:
    from ..images import picture_suffixes

    given = {path.resolve() for path in paths}
    folders = {path.parent for path in given}
    for path in written:
        place = path.resolve()
        # A picture beside those given is the user's own too, even if it was not given.
        if place in given or (
            place.suffix.lower() in picture_suffixes() and place.parent in folders and place.exists()
        ):
            raise FileExistsError(f"{argument}: would overwrite {path}; {instead}")


def summary(found: Detections, threshold: float) -> str:
    """What was found, in words: "5 objects (3 cat, 2 dog)"."""
    counts = Counter(found.class_names[label] for label in found.above(threshold).labels)
    total = sum(counts.values())
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{total} object{'' if total == 1 else 's'}" + (f" ({kinds})" if kinds else "")


def _save(path: Path, picture: NDArray[np.uint8], found: Detections, threshold: float) -> None:
    from PIL import Image

    from ..files import write_atomically

    drawn = found.draw(picture, score_threshold=threshold, scale=None)  # small pictures grow: tags must be readable
    write_atomically(path, lambda file: Image.fromarray(drawn).save(file))
