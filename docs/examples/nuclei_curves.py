"""The table and the picture of docs/training.md's nuclei: ``python docs/examples/nuclei_curves.py``.

Reads ``metrics.jsonl`` of the runs that stand there, those that are there, and draws docs/pictures/nuclei.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchdcn.plotting.canvas import PALETTE
from torchdcn.training import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNS = {"plain": "plain", "mdconv": "mdconv", "mdconv + mdpool": "mdpool", "mdconv + mimicking": "mimic"}
COLORS = [tuple(c / 255 for c in PALETTE[i]) for i in (6, 3, 4, 5)]  # readable for colour-blind people, thin on white
STYLES = ("-", "--", "-.", ":")
PICTURE = Path("docs/pictures/nuclei.png")
WINDOW = 9
LOSS = f"loss without mimicking's terms (thick: running median of {WINDOW})"


def detection_loss(line: dict[str, Any]) -> float:
    """The sum that all four have: without what mimicking adds."""
    return line["loss"] - sum(value for name, value in line.items() if name.startswith("loss_mimic"))


def draw_losses(axes: Axes, lines: list[dict[str, Any]], name: str, color: Any, style: str) -> None:
    steps, losses = [line["step"] for line in lines], [detection_loss(line) for line in lines]
    half = WINDOW // 2
    smooth = [np.median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, color=color, lw=0.8, alpha=0.2)
    axes.plot(steps, smooth, color=color, ls=style, lw=1.8, label=f"{np.mean(losses[-WINDOW:]):.2f}  {name}")


def draw_figure(axes: Axes, kind: str, name: str, runs: list[list[dict[str, Any]]]) -> None:
    """One of COCO's figures after each epoch; the networks stand a little apart, lest one hides another."""
    for number, (val, color, style) in enumerate(zip(runs, COLORS, STYLES, strict=True)):
        epochs = [line["epoch"] + 0.09 * (number - 1.5) for line in val]
        values = [line[kind][name] for line in val]
        axes.plot(epochs, values, "o", ls=style, lw=1.2, color=color, ms=5.5, mec="black", mew=0.4)
    last = max((line["epoch"] for val in runs for line in val), default=1)
    axes.set(xlim=(0.6, last + 0.4), title=f"{'box' if kind == 'bbox' else 'mask'} {name}")
    axes.set_xticks(range(1, last + 1))
    axes.margins(y=0.12)


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/nuclei-{}", help="Folder of a run.")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    figure = Figure(figsize=(11, 4.4), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplot_mosaic(
        [["loss", "box AP", "mask AP"], ["loss", "box AP50", "mask AP50"]], width_ratios=(2, 1, 1)
    )
    print("| network | box AP | box AP50 | box AP75 | mask AP | mask AP50 | mask AP75 |\n|---|---|---|---|---|---|---|")
    runs: list[list[dict[str, Any]]] = []
    for (name, folder), color, style in zip(RUNS.items(), COLORS, STYLES, strict=True):
        record = read_record(Path(given.runs.format(folder)) / "metrics.jsonl")
        runs.append([line for line in record if line["kind"] == "val"])
        if not runs[-1]:
            continue
        draw_losses(panels["loss"], [line for line in record if line["kind"] == "train"], name, color, style)
        figures = (runs[-1][-1][kind][key] for kind in ("bbox", "segm") for key in ("AP", "AP50", "AP75"))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    for kind, word in (("bbox", "box"), ("segm", "mask")):
        for key in ("AP", "AP50"):
            draw_figure(panels[f"{word} {key}"], kind, key, runs)
            panels[f"{word} {key}"].set_xlabel("epoch" if key == "AP50" else "")
    panels["loss"].set(xlim=(0, None), xlabel="step", title=LOSS)
    panels["loss"].legend(frameon=False, title=f"mean of the last {WINDOW}", alignment="left")
    for axes in panels.values():
        axes.grid(axis="y", color="#dddddd", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(given.picture)


if __name__ == "__main__":
    main()
