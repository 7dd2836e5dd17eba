"""What mixed precision changes in training: losses, AP and memory of the same run in float32 and in bf16 or fp16."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from torchdcn.training import read_record

LOSSES = ("loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other arguments go to torchdcn train.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--amp", nargs="+", default=["none", "bf16"])
    options, flags = parser.parse_known_args()
    for amp in options.amp:
        out = options.out / amp
        # A process each: the most memory that one has taken never falls.
        command = [sys.executable, "-m", "torchdcn", "train", *flags, "--amp", amp, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # our own program
        lines = [line for line in read_record(out / "metrics.jsonl") if line["kind"] == "train"]
        last = lines[-max(1, len(lines) // 4) :]
        means = {name: sum(line[name] for line in last) / len(last) for name in LOSSES if name in last[0]}
        metrics = json.loads((out / "metrics.json").read_text())
        print(f"{amp}: losses over the last quarter: " + ", ".join(f"{n} {v:.4f}" for n, v in means.items()))
        figures = [f"{kind} {name} {values[name]:.4f}" for kind, values in metrics.items() for name in ("AP", "AP50")]
        speed = sorted(line["images_per_s"] for line in lines)[len(lines) // 2]
        print(f"  {', '.join(figures)}; {lines[-1].get('memory_mib')} MiB at most, {speed:.2f} images/s", flush=True)


if __name__ == "__main__":
    main()
