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
            *("" if ap is None else f"{ap:.1f}" for ap in (found.box_ap, found.mask_ap)),
        )
    screen = console()
    screen.print(table)
    by = "by mmdetection, and of the names with dcnv2 by the paper"
    screen.print(f"AP: as published {by} (COCO 2017 val, in percent); not measured here.")
