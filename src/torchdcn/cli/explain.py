"""``torchdcn explain``."""

from __future__ import annotations

import time
import warnings
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import bad_usage, console, verb
from .options import Device, Model, Weights, model_of
from .words import said_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from ..analysis import Explanation, Node
    from ..models.rcnn import RCNN

COMPARED = dict.fromkeys(("name", "weights"), "--compare")
"""Where a fault lies that create_model finds in another network."""


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
    layer: Annotated[
        str | None,
        typer.Option(help="For --at: path of the module whose output is asked about; by default the last stage."),
    ] = None,
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
    from ..analysis import find_node, layers_to_compare
    from ..analysis.explain import LAYER
    from ..files import make_folder
    from ..images import load_image
    from ..reports.explain import ExplainedNetwork, write_explain_report

    if (at is None) == (roi is None):
        bad_usage("expected --at X,Y or --roi X1,Y1,X2,Y2, one of them")
    place = _read_numbers(at, 2, "at") if at is not None else _read_numbers(str(roi), 4, "roi")
    model = model_of(model, weights, "explain")
    picture = load_image(image)
    _refuse_to_overwrite(image, out)
    wanted = [(model, weights), *(model_and_weights(text) for text in compare or [])]
    networks = [_load(name, file, min_size, device, other=i > 0) for i, (name, file) in enumerate(wanted)]
    screen = console()
    with said_as({"x, y": "--at", "node": "--layer" if roi is None else "--roi"}):
        nodes = [find_node(network, picture, place, layer or LAYER) for network in networks]
        make_folder(out, "out")  # after what can be wrong with the place, before what takes long
        explained = [
            ExplainedNetwork(network.name, file, _explain(network, picture, node, place, error, regular, screen))
            for network, node, regular, (_, file) in zip(
                networks, nodes, layers_to_compare(networks), wanted, strict=True
            )
        ]
    write_explain_report(out, image.name, picture, explained)
    screen.print(f"Pictures, explain.json and report.html in {out}", markup=False, soft_wrap=True)


def _read_numbers(text: str, count: int, name: str) -> tuple[float, ...]:
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
    """Splits the value of ``--compare``."""
    name, _, file = text.partition(":")
    return name, file or None


def _refuse_to_overwrite(image: Path, out: Path) -> None:
    from ..reports.explain import FILES

    if image.resolve() in [(out / name).resolve() for name in FILES]:
        raise FileExistsError(f"out: would overwrite {image}; choose another folder")


def _load(name: str, file: str | None, min_size: int | None, device: str | None, *, other: bool) -> RCNN:
    from ..models import create_model
    from ..nn.layout import to_device
    from ..training.device import choose_device

    overrides: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    with said_as(COMPARED if other else {}):
        network = create_model(name, weights=file, **overrides)
    if file is None:
        warnings.warn(f"{name} has random weights, so what it looks at means nothing; give weights", stacklevel=3)
    return to_device(network, choose_device(device))


def _explain(
    network: RCNN,
    picture: NDArray[np.uint8],
    node: Node,
    place: tuple[float, ...],
    error: float,
    regular: Sequence[str],
    screen: Console,
) -> Explanation:
    """The explanation, with the number of passes and the expected time before the search, and a bar during it."""
    from ..analysis import PASSES, explain
    from ..training.progress import counter

    began: dict[str, float] = {}

    def on_start(kind: str) -> None:
        began[kind] = time.monotonic()
        if kind == "region":
            seconds = PASSES * (began["region"] - began["field"])
            screen.print(
                f"{network.name}: searching the saliency region, at most {PASSES} passes, about {seconds:.0f} s"
            )

    with counter("saliency region", screen) as progress:
        return explain(
            network, picture, node, place, error=error, regular=regular, on_start=on_start, progress=progress
        )
