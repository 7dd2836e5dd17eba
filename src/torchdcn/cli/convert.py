"""``torchdcn convert``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import bad_usage, console, verb
from .words import said_as

if TYPE_CHECKING:
    from ..models.rcnn import RCNN

SOURCES = {".safetensors": (".pth", ".pt"), ".pth": (".safetensors",)}
"""What a kind of file is made from."""


@verb(
    "convert",
    example="torchdcn convert epoch_12.pth weights.safetensors --model mask_rcnn_r50_fpn_mdconv_c3-c5",
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="mmdetection's .pth, or a .safetensors of ours.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File of the other kind, .safetensors or .pth.")],
    model: Annotated[str, typer.Option(help="Name of the model, see `torchdcn models`.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Converts weights: a checkpoint of mmdetection to a file of ours, or back."""
    from ..files import check_file, write_atomically
    from ..models import create_model
    from ..models.weights import save_weights
    from ..weights.messages import shorten_list

    if source.suffix not in SOURCES.get(out.suffix, ()):
        expected = "expected IN.pth OUT.safetensors or IN.safetensors OUT.pth"
        bad_usage(f"{expected}, got {source} {out} (see torchdcn convert --help)")
    if not source.is_file():
        raise FileNotFoundError(f"IN: there is no file {str(source)!r}")
    check_file(out, "OUT")
    if out.exists() and not force:
        raise FileExistsError(f"OUT: {out} exists; give --force to replace it")
    with said_as({"weights": "IN"}):
        network = create_model(model, weights=source)
    if out.suffix == ".safetensors":
        save_weights(network, out)
    else:
        import torch

        content = _for_mmdet(network)
        write_atomically(out, lambda file: torch.save(content, file))
    names = f" ({shorten_list(list(network.class_names), 3)})" if network.class_names else ""
    text = f"{out} ({out.stat().st_size / 1e6:.1f} MB): {model}, {network.num_classes} classes{names}"
    console().print(text, markup=False, soft_wrap=True)


def _for_mmdet(network: RCNN) -> dict[str, Any]:
    """A checkpoint of plain tensors and texts; what mmdetection has no place for stays with it under our name."""
    from ..interop import to_mmdet
    from ..models.weights import info_of
    from ..weights.torchdcn_file import info_to_json

    meta: dict[str, Any] = {"torchdcn": info_to_json(info_of(network))}
    if network.class_names is not None:
        meta["CLASSES"] = tuple(network.class_names)
    return {"meta": meta, "state_dict": to_mmdet(network)}
