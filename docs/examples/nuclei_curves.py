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
PICTURE = Path("docs/pictures/nuclei.png")
WINDOW = 9


def detection_loss(line: dict[str, Any]) -> float:
    """The sum that all four have: without what mimicking adds."""
    return line["loss"] - sum(value for name, value in line.items() if name.startswith("loss_mimic"))


def draw_losses(axes: Axes, lines: list[dict[str, Any]], name: str, color: Any, style: str) -> None:
    steps, losses = [line["step"] for line in lines], [detection_loss(line) for line in lines]
    half = WINDOW // 2
    smooth = [np.median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, color=color, lw=0.8, alpha=0.25)
    axes.plot(steps, smooth, color=color, ls=style, lw=1.8, label=f"{name}  {np.mean(losses[-WINDOW:]):.2f}")


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/nuclei-{}", help="Folder of a run.")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    figure = Figure(figsize=(11, 3.9), dpi=150, facecolor="white", layout="constrained")
    loss, box, mask = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    print("| network | box AP | box AP50 | box AP75 | mask AP | mask AP50 | mask AP75 |\n|---|---|---|---|---|---|---|")
    for (name, folder), color, style in zip(RUNS.items(), COLORS, ("-", "--", "-.", ":"), strict=True):
        file = Path(given.runs.format(folder)) / "metrics.jsonl"
        if not file.exists():
            continue
        record = list(read_record(file))
        val = [line for line in record if line["kind"] == "val"]
        draw_losses(loss, [line for line in record if line["kind"] == "train"], name, color, style)
        for axes, kind in ((box, "bbox"), (mask, "segm")):
            for figure_name, marker in (("AP50", "o"), ("AP", "s")):
                values = [line[kind][figure_name] for line in val]
                axes.plot([line["step"] for line in val], values, marker, ls=style, color=color, mec="black", mew=0.4)
        figures = (val[-1][kind][key] for kind in ("bbox", "segm") for key in ("AP", "AP50", "AP75"))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    loss.set(ylim=(0, None), ylabel="loss", title="Loss without mimicking's terms, mean of the last lines")
    loss.legend(frameon=False)
    for axes, title in ((box, "Boxes: AP50 ●, AP ■"), (mask, "Masks: AP50 ●, AP ■")):
        axes.set(ylim=(0, 1), title=title)
    for axes in (loss, box, mask):
        axes.set(xlim=(0, None), xlabel="step")
        axes.grid(axis="y", color="#dddddd", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(given.picture)


if __name__ == "__main__":
    main()
