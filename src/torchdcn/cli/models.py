"""``torchdcn models``."""

from __future__ import annotations

from .app import console, verb


@verb("models", example="torchdcn models")
def models() -> None:
    """Lists the models: their layers, parameters, and the figures published for them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..models import list_models
    from ..models.summary import summary

    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("deformable layers")
    for column in ("parameters", "box AP", "mask AP"):
        table.add_column(column, justify="right")
    for name in list_models():
        found = summary(name)
        table.add_row(
            name,
            found.layers or "–",
            f"{found.parameters / 1e6:.1f} M",
            *(f"{ap:.1f}" if ap and found.source == "mmdetection" else "" for ap in (found.box_ap, found.mask_ap)),
        )
    screen = console()
    screen.print(table)
    screen.print("AP: as published in mmdetection's model table (COCO 2017 val, in percent); not measured here.")
