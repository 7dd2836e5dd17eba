"""``torchdcn models``."""

from __future__ import annotations

from .app import console, verb


@verb("models", example="torchdcn models")
def models() -> None:
    """Lists the models: their layers, parameters, and the figures published for them."""
    import torch
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..models import create_model, list_models
    from ..models.zoo import PUBLISHED, settings_of
    from ..nn import DeformConv2dPack

    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("deformable layers")
    for column in ("parameters", "box AP", "mask AP"):
        table.add_column(column, justify="right")
    for name in list_models():
        settings = settings_of(name)
        with torch.device("meta"):  # shapes only: a hundred million numbers need not be drawn to be counted
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        layers = "–"
        if settings.conv:
            count = sum(isinstance(module, DeformConv2dPack) for module in model.modules())
            stages = "-".join(dict.fromkeys((settings.deform_stages[0], settings.deform_stages[-1])))
            groups = f", {settings.deform_groups} groups" if settings.deform_groups > 1 else ""
            layers = f"{count} {settings.conv} in {stages}{groups}"
        published = PUBLISHED.get(name)
        table.add_row(
            name,
            layers,
            f"{parameters / 1e6:.1f} M",
            f"{published.box_ap:.1f}" if published else "",
            f"{published.mask_ap:.1f}" if published and published.mask_ap else "",
        )
    screen = console()
    screen.print(table)
    screen.print("AP: as published in mmdetection's model table (COCO 2017 val, in percent); not measured here.")
