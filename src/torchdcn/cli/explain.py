"""``torchdcn explain``."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import bad_usage, console, verb
from .options import Device, Model, Weights, model_of
from .words import said_as

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import Tensor

    from ..analysis import EffectiveLocations, Node, ReceptiveField, SaliencyRegion, SupportSummary
    from ..models.rcnn import RCNN
    from ..plotting import Support

LAYER = "backbone.body.layer4"
COMPARED = dict.fromkeys(("name", "weights"), "--compare")
"""Where a fault lies that create_model finds in another network."""
PICTURES = {"sampling": "sampling", "receptive-field": "field", "saliency": "region"}


@dataclass(frozen=True, eq=False)
class Explained:
    """What one network says about its node."""

    model: str
    weights: str | None
    node: Node
    locations: EffectiveLocations
    field: ReceptiveField
    region: SaliencyRegion
    object_name: str | None  # what the network detects there
    object_mask: NDArray[np.bool_] | None
    summaries: dict[str, SupportSummary | None]  # None where there is no support at all


@verb(
    "explain",
    example="torchdcn explain street.jpg --model mask_rcnn_r18_fpn_mdconv_c3-c5 --weights runs/my/last.safetensors "
    "--at 120,80 --out why",
)
def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the numbers and report.html.")],
    at: Annotated[str | None, typer.Option(metavar="X,Y", help="A pixel: the layer's node nearest to it.")] = None,
    roi: Annotated[
        str | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Instead: a box, as the detector's head sees it.")
    ] = None,
    model: Model = None,
    weights: Weights = None,
    layer: Annotated[str, typer.Option(help="For --at: path of the module whose output is asked about.")] = LAYER,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="MODEL[:WEIGHTS]", help="Another network, beside; may be repeated.")
    ] = None,
    error: Annotated[float, typer.Option(min=0, help="Bound of the saliency region, a share of the features.")] = 0.2,
    min_size: Annotated[int | None, typer.Option(min=16, help="Short side; by default the weights' own.")] = None,
    device: Device = None,
) -> None:
    """Shows what a network looked at: where it samples, its receptive field, and the least it needs to see.

    Writes sampling, receptive-field, saliency and support (all three) as .png and .svg, explain.json and report.html.
    """
    import torch

    from ..files import make_folder
    from ..images import load_image
    from ..models import create_model
    from ..nn.layout import to_device
    from ..training.device import choose_device

    if (at is None) == (roi is None):
        bad_usage("expected --at X,Y or --roi X1,Y1,X2,Y2, one of them")
    place = _numbers(at, 2, "at") if at is not None else None
    box = _numbers(roi, 4, "roi") if roi is not None else None
    model = model_of(model, weights, "explain")
    picture = load_image(image)
    _refuse_to_overwrite(image, out)
    overrides: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    networks: list[tuple[RCNN, str | None]] = []
    for name, file in [(model, weights), *(model_and_weights(text) for text in compare or [])]:
        with said_as(COMPARED if networks else {}):
            network = create_model(name, weights=file, **overrides)
        network = to_device(network, choose_device(device))
        if file is None:
            warnings.warn(f"{name} has random weights, so what it looks at means nothing; give weights", stacklevel=2)
        networks.append((network, file))
    screen = console()
    pixels = torch.tensor(picture).permute(2, 0, 1) / 255
    with said_as({"x, y": "--at", "node": "--layer" if box is None else "--roi"}):
        nodes = [_node(network, pixels, layer, place, box) for network, _ in networks]
        located = _locations([network for network, _ in networks], pixels, nodes)
    make_folder(out, "out")  # after what can be wrong with the place, before what takes long
    found = []
    for (network, file), node, locations in zip(networks, nodes, located, strict=True):
        named = object_at(network, picture, place or box or ())
        found.append(_explain(network, file, pixels, node, locations, named, error, screen))
    _write(out, picture, found, error, image.name)
    screen.print(f"Pictures, explain.json and report.html in {out}", markup=False, soft_wrap=True)


def _numbers(text: str, count: int, name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        what = "X,Y" if count == 2 else "X1,Y1,X2,Y2"
        bad_usage(
            f"--{name}: expected {what} in pixels, such as {'120,80' if count == 2 else '10,20,90,70'}, got {text!r}"
        )
    return numbers


def model_and_weights(text: str) -> tuple[str, str | None]:
    """What ``--compare`` says."""
    name, _, file = text.partition(":")
    return name, file or None


def _refuse_to_overwrite(image: Path, out: Path) -> None:
    names = [f"{name}.{kind}" for name in (*PICTURES, "support") for kind in ("png", "svg")]
    for name in (*names, "explain.json", "report.html"):
        if (out / name).resolve() == image.resolve():
            raise FileExistsError(f"out: would overwrite {image}; choose another folder")


def _node(
    network: RCNN, pixels: Tensor, layer: str, place: tuple[float, ...] | None, box: tuple[float, ...] | None
) -> Node:
    from ..analysis import Node, node_at

    if place is None:
        return Node(roi=box)  # type: ignore[arg-type]  # four numbers, as was checked
    return node_at(network, pixels, layer, *place)


def _locations(networks: list[RCNN], pixels: Tensor, nodes: list[Node]) -> list[EffectiveLocations]:
    """Of each network's deformable layers; of a regular network's layers of the same names, so that they compare."""
    from ..analysis import effective_sampling_locations
    from ..nn import DeformConv2d

    located, names, regular = [], list[str](), list[int]()
    for index, (network, node) in enumerate(zip(networks, nodes, strict=True)):
        located.append(effective_sampling_locations(network, pixels, node))
        deformable = {name for name, module in network.named_modules() if isinstance(module, DeformConv2d)}
        used = [name for name in located[-1].layers if name in deformable]
        names = names or used
        regular += [] if used else [index]
    for index in regular:
        network, node = networks[index], nodes[index]
        if names and set(names) <= {name for name, _ in network.named_modules()}:
            bins = [name for name in located[index].layers if "box_roi_pool" in name]
            located[index] = effective_sampling_locations(network, pixels, node, [*names, *bins])
    return located


def _explain(
    network: RCNN,
    file: str | None,
    pixels: Tensor,
    node: Node,
    locations: EffectiveLocations,
    named: tuple[str | None, NDArray[np.bool_] | None],
    error: float,
    screen: Console,
) -> Explained:
    import torch

    from ..analysis import PASSES, effective_receptive_field, saliency_region, support_summary
    from ..training.progress import counter

    name, mask = named
    began = time.monotonic()
    receptive = effective_receptive_field(network, pixels, node)
    seconds = PASSES * (time.monotonic() - began)
    screen.print(f"{network.name}: searching the saliency region, at most {PASSES} passes, about {seconds:.0f} s")
    with counter("saliency region", screen) as progress:
        region = saliency_region(network, pixels, node, error, progress=progress)
    shown = None if mask is None else torch.from_numpy(mask)
    supports: dict[str, tuple[EffectiveLocations | ReceptiveField | SaliencyRegion, Tensor]] = {
        "sampling": (locations, locations.strengths),
        "field": (receptive, receptive.map),
        "region": (region, region.mask),
    }
    summaries = {
        kind: support_summary(support, shown) if bool(shares.any()) else None
        for kind, (support, shares) in supports.items()
    }
    return Explained(network.name, file, node, locations, receptive, region, name, mask, summaries)


def object_at(
    network: RCNN, picture: NDArray[np.uint8], place: tuple[float, ...]
) -> tuple[str | None, NDArray[np.bool_] | None]:
    """What the network itself detects at a pixel or in a box, the best: its name, and its mask if there are masks."""
    import numpy as np

    from ..detector import Detector

    found = Detector(network, score_threshold=0.3)(picture)
    if len(place) == 4:
        overlap = _overlap(found.boxes.astype(np.float64), np.array(place))
        # Of two classes for nearly the same box the surer one, of two objects the one whose box it is.
        order = np.argsort(-overlap * found.scores, kind="stable")
        hits = order[overlap[order] >= 0.5]
    else:
        x, y = place
        row, column = min(max(round(y), 0), picture.shape[0] - 1), min(max(round(x), 0), picture.shape[1] - 1)
        if found.masks is not None:
            hits = np.flatnonzero(found.masks[:, row, column])
        else:
            x1, y1, x2, y2 = found.boxes.T
            hits = np.flatnonzero((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2))
    if not len(hits):
        return None, None
    best = int(hits[0])
    name = f"{found.class_names[found.labels[best]]} {found.scores[best]:.2f}"
    return name, None if found.masks is None else np.asarray(found.masks[best], bool)


def _overlap(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each of ``[D, 4]`` with one."""
    import numpy as np

    sides = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(0)
    common = sides.prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(common / (areas - common))


def _support(found: Explained, name: str) -> Support:
    """As plain arrays, with a line of numbers under each picture."""
    from ..plotting import Support

    notes = {}
    for kind, summary in found.summaries.items():
        if summary is None:
            notes[kind] = f"nothing has to be kept, error {found.region.error:.2f}" if kind == "region" else "none"
            continue
        parts = [] if summary.inside is None else [f"{summary.inside:.0%} on the object"]
        if kind == "region":
            parts.append(f"{found.region.area:.1%} of the image, error {found.region.error:.2f}")
        else:
            parts.append(f"spread {summary.radius:.0f} px, {summary.entropy:.1f} bits")
        notes[kind] = " · ".join(parts)
    return Support(
        name=name,
        centre=found.field.centre.numpy(),
        points=found.locations.points.numpy(),
        strengths=found.locations.strengths.numpy(),
        field=found.field.map.numpy(),
        region=found.region.mask.numpy(),
        fill=found.region.fill.numpy(),
        box=found.node.roi,
        outline=found.object_mask,
        notes=notes,
    )


def names_of(found: list[Explained]) -> list[str]:
    """What to call each network: its model's name, numbered where two are alike."""
    names = [one.model for one in found]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]


def _write(out: Path, picture: NDArray[np.uint8], found: list[Explained], error: float, image: str) -> None:
    from ..files import write_atomically
    from ..plotting import figure_bytes, support_figure
    from .explain_report import report_html

    supports = [_support(one, name) for one, name in zip(found, names_of(found), strict=True)]
    figures = {name: support_figure(picture, supports, [kind]) for name, kind in PICTURES.items()}
    figures["support"] = support_figure(picture, supports)
    shown: dict[str, bytes] = {}
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            content = figure_bytes(figure, kind)
            write_atomically(out / f"{name}.{kind}", partial(_put, content=content))
            if kind == "png":
                shown[name] = content
    numbers = {"image": image, "bound": error, "networks": [_numbers_of(one) for one in found]}
    text = json.dumps(numbers, indent=2) + "\n"
    write_atomically(out / "explain.json", lambda file: file.write_text(text, encoding="utf-8"))
    page = report_html(numbers, names_of(found), shown)
    write_atomically(out / "report.html", lambda file: file.write_text(page, encoding="utf-8"))


def _put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _numbers_of(found: Explained) -> dict[str, Any]:
    return {
        "model": found.model,
        "weights": found.weights,
        "node": {key: value for key, value in asdict(found.node).items() if value is not None},
        "centre": found.field.centre.tolist(),
        "response": found.field.response,
        "object": found.object_name,
        "layers": list(found.locations.layers),
        "summaries": {kind: None if s is None else asdict(s) for kind, s in found.summaries.items()},
        "region": {"area": found.region.area, "error": found.region.error, "curve": found.region.curve.tolist()},
    }
