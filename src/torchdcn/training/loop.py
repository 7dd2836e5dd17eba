"""The training loop: settings in, a folder with the trained weights out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from . import checkpoint
from .batches import epoch_plan, load_batches
from .checkpoint import TrainState, read_checkpoint, restore, save_checkpoint
from .device import choose_device
from .files import write_atomically
from .folder import RunFolder
from .progress import counter
from .recipes import lr_factor, optimizer, schedule
from .record import Means, Record
from .signals import StopRequest, stop_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from .batches import Batch, Draw
    from .config import TrainConfig

    Metrics = dict[str, dict[str, float]]
    Evaluate = Callable[[nn.Module], Metrics]

# Data and models are imported where they are used: torchvision takes a second, which `torchdcn --help` need not spend.

FREE_TO_CHANGE = {"epochs", "out", "device", "workers", "eval_every", "log_every", "checkpoint_every"}
"""The settings that a resumed run may have others of: they change nothing that is already trained."""

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(Exception):  # noqa: N818  # nothing went wrong
    """Somebody asked the run to stop, and it did, after saving. ``signal`` is the number of what asked."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def train(
    config: TrainConfig, evaluate: Evaluate | None = None, *, resume: bool = False, console: Console | None = None
) -> Metrics:
    """Trains a detector and leaves its weights, figures and checkpoint in ``config.out``.

    The folder gets ``config.json``, ``metrics.jsonl``, TensorBoard events, ``checkpoint.pt`` and, at every checkpoint,
    ``last.safetensors``; with ``evaluate`` also ``metrics.json``. An earlier run found there is moved aside.

    Args:
        config: Everything that decides the run.
        evaluate: Called with the model every ``config.eval_every`` epochs and at the end; gives the AP figures of
            :func:`torchdcn.evaluation.evaluate_coco`. If it has a method ``check``, that is called with the model
            before the first step, to raise then what it would raise at the end.
        resume: Go on from ``config.out``'s checkpoint; where there is none, start afresh and say so.
        console: Where progress is shown; standard output by default.

    Returns:
        What ``evaluate`` gave at the end, or an empty dict.

    Raises:
        ValueError: Data, settings, weights or a checkpoint that do not fit.
        OSError: A file that can't be read, or ``config.out`` can't be written.
        FloatingPointError: The loss or its gradient is not finite; the message names the images.
        Interrupted: Ctrl-C or SIGTERM; all is saved.

    Example:
        >>> from torchdcn.training import TrainConfig, train
        >>> config = TrainConfig("synthetic", "mask_rcnn_r18_fpn_mdconv_c3-c5", "runs/try", epochs=1, min_size=128)
        >>> train(config)  # doctest: +SKIP
        {}
    """
    console = console or Console()
    _refuse_many_processes()
    device = _device(config)
    dataset = _open_data(config, console)
    saved = _checkpoint_to_resume(config, console) if resume else None
    torch.manual_seed(config.seed)
    model = _create(config, dataset).to(device)
    if (check := getattr(evaluate, "check", None)) is not None:
        check(model)
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)
    steps = math.ceil(len(dataset) / config.batch_size) * config.epochs
    state = _start(model, steps, config, device)
    if saved is not None:
        restore(state, saved)
        # The rates in the checkpoint are those of its own number of epochs.
        for group, base in zip(state.optimizer.param_groups, state.scheduler.base_lrs, strict=True):
            group["lr"] = base * lr_factor(state.step, steps, config)
    with RunFolder(Path(config.out), resumed=saved is not None) as folder, stop_requests() as stop:
        if folder.moved_to:
            console.print(f"An earlier run in {config.out} was moved to {folder.moved_to}", highlight=False)
        config.save(folder.path / "config.json")
        with Record(folder.path, console, steps, done=state.step) as record:
            run = _Run(config, dataset, device, state, record, folder, stop, evaluate)
            console.print(run.describe(), highlight=False, soft_wrap=True)
            return run.to_the_end()


@dataclasses.dataclass
class _Run:
    config: TrainConfig
    dataset: Any
    device: torch.device
    state: TrainState
    record: Record
    folder: RunFolder
    stop: StopRequest
    evaluate: Evaluate | None

    def describe(self) -> str:
        state, config = self.state, self.config
        trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        begun = f", from step {state.step}" if state.step else ""
        return (
            f"Training {config.model} ({trained / 1e6:.1f} M parameters, {len(self.dataset.class_names)} classes) on "
            f"{len(self.dataset)} images, epochs: {config.epochs}, batch size: {config.batch_size}{begun}, "
            f"on {self.device}, into {config.out}"
        )

    def to_the_end(self) -> Metrics:
        metrics: Metrics = {}
        while self.state.epoch < self.config.epochs:
            self.epoch()
            if self.config.eval_every and self.state.epoch % self.config.eval_every == 0:
                metrics = self.evaluated()
                if self.stop.signal is not None and self.state.epoch < self.config.epochs:
                    self.leave(self.stop.signal)
        return metrics if metrics and self.state.epoch % self.config.eval_every == 0 else self.evaluated()

    def epoch(self) -> None:
        """Trains on what is left of the epoch, and saves."""
        config, state = self.config, self.state
        plan = epoch_plan(len(self.dataset), config.batch_size, config.seed, state.epoch)[state.batch :]
        label = f"epoch {state.epoch + 1}/{config.epochs}"
        means = Means()
        state.model.train()
        for draws, batch in zip(plan, self.loaded(plan), strict=True):
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            means.add(self.step(batch, draws), len(draws))
            state.batch, state.step = state.batch + 1, state.step + 1
            self.record.advance(label, state.step)
            if state.step % config.log_every == 0 or draws is plan[-1]:
                self.record.losses(label, state.step, {"epoch": state.epoch + 1, **means.read(), "lr": lr})
            if self.stop.signal is not None:
                self.leave(self.stop.signal)
            if state.step % config.checkpoint_every == 0:
                self.save()
        state.epoch, state.batch = state.epoch + 1, 0
        self.save()

    def loaded(self, plan: list[list[Draw]]) -> Iterator[Batch]:
        from ..data import collate

        return load_batches(self.dataset, plan, collate, self.config.workers, pin_memory=self.device.type == "cuda")

    def step(self, batch: Batch, draws: list[Draw]) -> dict[str, float]:
        """One step of the optimiser; the losses, their sum and the gradient's norm."""
        state = self.state
        images = [image.to(self.device, non_blocking=True) for image in batch[0]]
        targets = [self.to_device(target) for target in batch[1]]
        with self.autocast():
            losses: dict[str, Tensor] = state.model(images, targets)
            loss = torch.stack([value.float() for value in losses.values()]).sum()
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(sum(values.values())):
            faulty = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            raise FloatingPointError(self.not_finite(f"the loss is not finite ({faulty})", draws))
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip or math.inf)
        if not state.scaler.is_enabled() and not torch.isfinite(norm):  # the scaler skips such a step by itself
            raise FloatingPointError(self.not_finite(f"the gradient is not finite (norm {float(norm)})", draws))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.scheduler.step()
        return {"loss": sum(values.values()), **values, "gradient_norm": float(norm)}

    def to_device(self, target: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in target.items()
        }

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def not_finite(self, what: str, draws: list[Draw]) -> str:
        names = ", ".join(str(self.dataset.image_path(index)) for index, _ in draws)
        kept = (
            f"the last good checkpoint is {self.folder.path / checkpoint.NAME}"
            if self.folder.saved
            else "nothing was saved"
        )
        return (
            f"step {self.state.step + 1}: {what} on the images {names}; look at them, or try a lower --lr than "
            f"{self.config.lr}; {kept}"
        )

    def save(self) -> None:
        from ..models.weights import save_weights

        save_checkpoint(self.folder.path / checkpoint.NAME, self.state, self.config.to_dict())
        save_weights(self.state.model, self.folder.path / "last.safetensors")
        self.folder.saved = True

    def leave(self, signal: int) -> None:
        self.save()
        raise Interrupted(
            f"Stopped at step {self.state.step} of {self.record.steps} and saved; go on with the same command and "
            "--resume",
            signal,
        )

    def evaluated(self) -> Metrics:
        if self.evaluate is None:
            return {}
        metrics = self.evaluate(self.state.model)
        self.record.evaluation(self.state.epoch, self.state.step, metrics)
        text = json.dumps(metrics, indent=2) + "\n"
        write_atomically(self.folder.path / "metrics.json", lambda file: file.write_text(text, encoding="utf-8"))
        return metrics


def _refuse_many_processes() -> None:
    if (processes := os.environ.get("WORLD_SIZE", "1")) not in ("", "0", "1"):  # as torchrun sets it
        raise ValueError(
            f"WORLD_SIZE: training in many processes is not supported yet, got {processes}; start one, without torchrun"
        )


def _device(config: TrainConfig) -> torch.device:
    device = choose_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp: fp16 needs a CUDA device, got {device}; use bf16 here")
    return device


def _open_data(config: TrainConfig, console: Console) -> Any:
    from ..data import open_dataset, train_transforms
    from ..models.zoo import settings_of

    settings = settings_of(config.model, **config.model_settings())
    transforms = train_transforms(horizontal_flip=config.flip)
    with counter("drawing scenes", console) as progress:  # in case it is the embedded data set, for the first time
        dataset = open_dataset(config.data, "train", transforms, masks=settings.masks, progress=progress)
    if not len(dataset):
        raise ValueError(f"{dataset.annotation_file}: there are no images to train on")
    if settings.masks and not dataset.has_masks:
        raise ValueError(
            f"{dataset.annotation_file}: has no masks, which {config.model} needs; use a faster_rcnn model"
        )
    return dataset


def _create(config: TrainConfig, dataset: Any) -> nn.Module:
    from ..models import create_model

    settings = config.model_settings()
    if config.weights_backbone is not None:
        settings["weights_backbone"] = config.weights_backbone
    classes = len(dataset.class_names)
    model = create_model(config.model, weights=config.weights, num_classes=classes, **settings)
    model.class_names, model.category_ids = dataset.class_names, dataset.category_ids
    return model


def _start(model: nn.Module, steps: int, config: TrainConfig, device: torch.device) -> TrainState:
    optimiser = optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    return TrainState(model, optimiser, schedule(optimiser, steps, config), scaler)


def _checkpoint_to_resume(config: TrainConfig, console: Console) -> dict[str, Any] | None:
    """The checkpoint in ``config.out``, if any.

    Raises:
        ValueError: It is of a run with other settings, where they matter for going on.
    """
    path = Path(config.out) / checkpoint.NAME
    if not path.is_file():
        console.print(f"{path} is not there: the run starts afresh", highlight=False)
        return None
    content = read_checkpoint(path)
    now = config.to_dict()
    for name in sorted(now.keys() - FREE_TO_CHANGE):
        if (then := content["config"].get(name)) != now[name]:
            raise ValueError(
                f"{name}: {path} was trained with {then!r}, got {now[name]!r}; resume with the same settings, or train "
                "without --resume"
            )
    return content
