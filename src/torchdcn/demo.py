"""``torchdcn demo``: the whole path once, offline, on two CPU cores, with a report to look at."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .analysis import draw_samples_in_box
from .data import CocoDetection, make_synthetic
from .detector import Detector
from .evaluation import evaluations_of, metrics_table
from .files import make_folder, write_atomically
from .images import load_image
from .models import create_model
from .nn.layout import to_device
from .plotting import loss_curve
from .reports.demo import CaptionedPicture, DemoReport, write_demo_report
from .training import TrainConfig, read_record, train
from .training.device import choose_device
from .training.folder import LOCK, lock_folder
from .training.progress import counter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from .detections import Detections

    Metrics = dict[str, dict[str, float]]

MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"
NODE_LAYER = "backbone.body.layer3"  # the paper's c4; c5 has only 4 x 4 positions on such small scenes

# Scenes hold a handful of figures, so a fraction of the usual proposals teaches as much in half of the time.
FEW_OBJECTS = {"box_batch_size_per_image": 64, "rpn_pre_nms_top_n_train": 512, "rpn_post_nms_top_n_train": 256}


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does. The defaults fit into a few minutes of two CPU cores."""

    train: int = 320
    val: int = 60
    size: int = 128
    difficulty: float = 0.05
    epochs: int = 4
    batch_size: int = 4
    lr: float = 6e-4
    pictures: int = 9
    seed: int = 0
    overrides: dict[str, Any] = dataclasses.field(default_factory=lambda: FEW_OBJECTS)


def run_demo(
    out: str | Path, console: Console, device: str | None = None, settings: DemoSettings | None = None
) -> Metrics:
    """Draws scenes, trains a detector on them, evaluates it, shows what it sees, and writes a report.

    Args:
        out: Folder that gets ``metrics.json``, ``detections/*.png``, ``sampling-*.png``, ``loss.png``, ``report.html``,
            the scenes (``scenes/``) and the training run (``training/``). What an earlier demo left there is replaced.
        console: Where progress is shown.
        device: By default CUDA where there is one, else the CPU.
        settings: Its size.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        OSError: The folder can't be written.
        ValueError: There is no such device.

    Example:
        >>> from rich.console import Console
        >>> from torchdcn.demo import run_demo
        >>> run_demo("runs/demo", Console())["bbox"]["AP50"] > 0.5  # doctest: +SKIP
        True
    """
    began, out, settings = time.monotonic(), Path(out), settings or DemoSettings()
    choose_device(device)
    make_folder(out, "out")
    _clear_training(out / "training")
    scenes = _scenes(out / "scenes", settings, console)
    config = TrainConfig(
        data=str(scenes), model=MODEL, out=str(out / "training"), epochs=settings.epochs,
        batch_size=settings.batch_size, min_size=settings.size, max_size=settings.size, lr=settings.lr,
        seed=settings.seed, device=device, overrides=settings.overrides,
    )  # fmt: skip
    trained = time.monotonic()
    train(config, console=console)
    trained = time.monotonic() - trained

    weights = Path(config.out) / "last.safetensors"
    detector = Detector(to_device(create_model(MODEL, weights=weights), choose_device(device)))
    dataset = CocoDetection(scenes, "val")
    with counter("evaluating", console) as progress:
        evaluations, _ = evaluations_of(detector, dataset, progress)
    metrics = {kind: each.metrics for kind, each in evaluations.items()}
    per_class = {kind: each.per_class for kind, each in evaluations.items()}
    _write_json(out / "metrics.json", metrics)
    console.print(metrics_table(metrics))

    found = [
        (dataset.image_path(i), detector(dataset.image_path(i))) for i in range(min(settings.pictures, len(dataset)))
    ]
    detections = _draw_detections(out, found)
    sampling = _draw_sampling(out, detector, found)
    curve = _draw_losses(Path(config.out))
    _save(out / "loss.png", curve)
    write_demo_report(
        out / "report.html",
        DemoReport(
            model=MODEL, settings=dataclasses.asdict(settings), metrics=metrics, per_class=per_class,
            detections=detections, sampling=sampling, loss=curve, seconds=time.monotonic() - began,
            training_seconds=trained, machine=_machine(detector.device), weights=weights,
        ),
    )  # fmt: skip
    _say_what_next(out, weights, time.monotonic() - began, console)
    return metrics


def _scenes(folder: Path, settings: DemoSettings, console: Console) -> Path:
    """The demo's data; that of an earlier demo of the same settings is taken as it is."""
    wanted = {name: getattr(settings, name) for name in ("train", "val", "size", "seed", "difficulty")}
    if folder.is_dir():
        try:
            info = json.loads((folder / "annotations" / "instances_val.json").read_text())["info"]
        except (OSError, ValueError, KeyError):
            raise FileExistsError(f"{folder}: is there already and not from a demo; choose another --out") from None
        if all(info.get(name) == value for name, value in wanted.items()):
            return folder
        shutil.rmtree(folder)
    with counter("drawing scenes", console) as progress:
        make_synthetic(folder, **wanted, progress=progress)
    console.print(f"Drew {settings.train} scenes to train on and {settings.val} to evaluate on, into {folder}")
    return folder


def _clear_training(folder: Path) -> None:
    """Deletes an earlier demo's run, and nothing else that may be called so."""
    if not folder.exists():
        return
    foreign = FileExistsError(f"{folder}: is there already and not from a demo; choose another --out")
    if not folder.is_dir():
        raise foreign
    with lock_folder(folder):  # or it would be another demo's that runs just now
        entries = [entry for entry in folder.iterdir() if entry.name != LOCK]
        try:
            earlier = TrainConfig.load(folder / "config.json")
            ours = earlier.model == MODEL and Path(earlier.data).name == "scenes"
        except (OSError, ValueError, TypeError):
            ours = not entries
        if not ours:
            raise foreign
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _draw_detections(out: Path, found: list[tuple[Path, Detections]]) -> list[CaptionedPicture]:
    gallery = []
    for path, detections in found:
        shown = detections.above(0.5)
        picture = shown.draw(path, scale=4)
        _save(out / "detections" / f"{path.stem}.png", picture)
        names = [shown.class_names[label] for label in shown.labels]
        gallery.append(
            CaptionedPicture(picture, ", ".join(names) or "nothing above 0.5", f"Detections in scene {path.stem}")
        )
    return gallery


def _draw_sampling(out: Path, detector: Detector, found: list[tuple[Path, Detections]]) -> list[CaptionedPicture]:
    """Where the network samples for the two surest detections that are of different classes."""
    ranked = sorted(
        ((score, row, path, objects) for path, objects in found for row, score in enumerate(objects.scores)),
        key=lambda item: -item[0],
    )
    gallery: dict[str, CaptionedPicture] = {}
    for _, row, path, objects in ranked:
        name = objects.class_names[objects.labels[row]]
        if name in gallery or len(gallery) == 2:
            continue
        picture = draw_samples_in_box(detector.model, load_image(path), objects.boxes[row].tolist(), NODE_LAYER)
        _save(out / f"sampling-{name}.png", picture)
        gallery[name] = CaptionedPicture(picture, f"{name}, scene {path.stem}", f"Sampling points on a {name}")
    return list(gallery.values())


def _draw_losses(run: Path) -> NDArray[np.uint8]:
    lines = [line for line in read_record(run / "metrics.jsonl") if line["kind"] == "train"]
    names = {
        "loss": "all", "loss_mask": "masks", "loss_classifier": "classes", "loss_box_reg": "boxes",
        "loss_objectness": "objectness", "loss_rpn_box_reg": "proposals",
    }  # fmt: skip
    losses = {label: [line[name] for line in lines] for name, label in names.items()}
    return loss_curve([line["step"] for line in lines], losses)


def _say_what_next(out: Path, weights: Path, seconds: float, console: Console) -> None:
    minutes, rest = divmod(round(seconds), 60)
    lines = [
        f"\nDone in {minutes} min {rest} s. Look at [bold]{out / 'report.html'}[/bold], which opens in any browser.",
        "With data of your own in COCO's format (annotations/instances_train.json, instances_val.json, train/, val/):",
        f"  [bold]torchdcn train --data my/coco --model {MODEL} --out runs/mine[/bold]",
        "With a picture of your own:",
        f"  [bold]torchdcn detect picture.jpg --model {MODEL} --weights {weights} --out found[/bold]",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    write_atomically(path, lambda file: Image.fromarray(picture).save(file))


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
