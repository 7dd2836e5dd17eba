"""A run from its first step to its last: epochs, steps, checkpoints, evaluations."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_atomically
from . import checkpoint
from .batches import Batch, Draw, epoch_plan, load_batches
from .checkpoint import TrainState, random_state, save_checkpoint
from .distributed import ToldElsewhere, job
from .record import Means
from .repeats import dataset_factors
from .sampling import seeded_samplers
from .setup import images_of
from .signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from rich.console import Console
    from torch import Tensor, nn

    from .config import TrainConfig
    from .distributed import Processes
    from .folder import RunFolder
    from .record import Record

    Metrics = dict[str, dict[str, float]]
    Evaluate = Callable[[nn.Module], Metrics]

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_OVERFLOWS = 50
"""Steps in a row. Each halves the scale: from torch's 65536 that is enough for any gradient that float16 can hold."""


@dataclass
class _LeaveIfAsked:
    """Called before each image of an evaluation. It holds no more than it needs: who evaluates may copy the model."""

    stop: StopRequest
    message: str

    def __call__(self, *_: Any) -> None:
        if self.stop.signal is not None:
            raise Interrupted(self.message, self.stop.signal)


@dataclass
class Run:
    """One process's part of a run. Only the first process has a folder and a record: it does all the writing."""

    config: TrainConfig
    dataset: Any
    state: TrainState
    steps: int
    device: torch.device
    processes: Processes
    stop: StopRequest  # asked between two steps
    console: Console
    evaluate: Evaluate | None
    folder: RunFolder | None
    record: Record | None

    def __post_init__(self) -> None:
        self.saved = self.state.step > 0
        self.overflows = 0
        self.factors = dataset_factors(self.dataset, self.config.repeat_factor_threshold)
        self.samplers = seeded_samplers(self.state.model)
        self.parallel = self.processes.parallel(self.state.model, self.device)

    def describe(self) -> str:
        """The first line of a run."""
        state, config = self.state, self.config
        trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        begun = f", from step {state.step}" if state.step else ""
        shared = f" in each of {self.processes.size} processes" if self.processes.size > 1 else ""
        return (
            f"Training {config.model} ({trained / 1e6:.1f} M parameters, {len(self.dataset.class_names)} classes) on "
            f"{len(self.dataset)} images, epochs: {config.epochs}, batch size: {config.batch_size}{shared}{begun}, "
            f"on {self.device}, into {config.out}"
        )

    def to_the_end(self) -> Metrics:
        """All that is left of the run; the last figures on val."""
        metrics: Metrics = {}
        if self.state.step and self.folder is not None:
            with self._writing():  # a process that died between its two files has left the older one of this
                self._save_weights()
        # An earlier part of the run may have ended before the evaluation that was due, or after it.
        known = self.processes.from_first(self.record.figures(self.state.step) if self.record is not None else {})
        while True:
            if self._evaluation_is_due():
                if known:
                    self.console.print("Evaluated already: the figures are in metrics.json", highlight=False)
                metrics = known or self._evaluated()
            if self.state.epoch >= self.config.epochs:  # more, where a run goes on with fewer than it had
                break
            self._epoch()
            known = {}
        if self.state.skipped:
            names = "".join(f"\n  {why}" for why in self.state.skipped.values())
            self.console.print(f"Images skipped, {len(self.state.skipped)} in all:{names}", markup=False)
        return metrics

    def _evaluation_is_due(self) -> bool:
        """Whether an epoch after which there is one has just ended."""
        state, every = self.state, self.config.eval_every
        if state.epoch >= self.config.epochs:
            return True
        return state.epoch > 0 and not state.batch and every > 0 and state.epoch % every == 0

    def _epoch(self) -> None:
        """Trains on what is left of the epoch, and saves."""
        config, state = self.config, self.state
        together = config.batch_size * self.processes.size
        images, factors = len(self.dataset), self.factors
        plan = epoch_plan(images, together, config.seed, state.epoch, factors)[state.batch :]
        means = Means()
        state.model.train()
        # Closed here, or an error's traceback would keep the loader's workers alive for as long as it is kept itself.
        with closing(self._loaded([self.processes.share(draws) for draws in plan])) as batches:
            for left in reversed(range(len(plan))):
                batch, images = self._next_batch(batches)
                lr = max(group["lr"] for group in state.optimizer.param_groups)
                if images:
                    means.add(self._step(batch, images), images)
                else:
                    self._pass_over()
                state.batch, state.step = state.batch + 1, state.step + 1
                self._tell(means, lr, last=not left)
                if left and state.step % config.checkpoint_every == 0:
                    self._save()
        if len(state.skipped) == len(self.dataset):
            why = next(iter(state.skipped.values()))
            raise ValueError(f"data: none of the {len(self.dataset)} images can be read, the first one: {why}")
        state.epoch, state.batch = state.epoch + 1, 0
        self.processes.check_alike(state.model)
        self._save()

    def _tell(self, means: Means, lr: float, last: bool) -> None:
        if self.record is None:
            return
        state = self.state
        label = f"epoch {state.epoch + 1}/{self.config.epochs}"
        self.record.advance(label, state.step)
        if (state.step % self.config.log_every == 0 or last) and (figures := means.read()):
            with self._writing():
                self.record.losses(label, state.step, {"epoch": state.epoch + 1, **figures, "lr": lr})

    def _loaded(self, plan: list[list[Draw]]) -> Generator[Batch]:
        from ..data import collate

        pin = self.device.type == "cuda"
        skip = self.config.skip_bad_images
        return load_batches(self.dataset, plan, collate, self.config.workers, pin_memory=pin, skip=skip)

    def _next_batch(self, batches: Iterator[Batch]) -> tuple[Batch, int]:
        """This process's part of the next batch, and the images of all parts; here all processes hear of a stop."""
        batch, error = Batch([], [], [], []), None
        try:
            batch = next(batches)
        except Exception as met:
            error = met
        signal = int(self.stop.signal or 0)
        images, faults, errors, stops = self.processes.total(
            [len(batch.images), len(batch.faults), error is not None, signal > 0]
        )
        if errors:
            if self.saved:
                self._save()
            self.processes.agree(error)
        if stops:
            self._leave(max(self.processes.everyones(signal)))
        if faults:
            self._note_skipped(batch)
        return batch, int(images)

    def _note_skipped(self, batch: Batch) -> None:
        mine = [(str(self.dataset.image_path(fault.index)), str(fault.error)) for fault in batch.faults]
        for path, why in (each for rank in self.processes.everyones(mine) for each in rank):
            if path in self.state.skipped:
                continue
            self.state.skipped[path] = why
            self.console.print(f"skipped: {why}", markup=False, highlight=False, soft_wrap=True)
            if self.record is not None:
                with self._writing():
                    self.record.skipped(self.state.step, path, why)

    def _step(self, batch: Batch, images: int) -> dict[str, float]:
        """One step of the optimiser; the losses, their sum and the gradient's norm.

        Each process averages over its own images, as is the field's custom, and the processes are averaged by the
        number of theirs: with the same number of samples in each image, that is one process's loss of the whole batch.
        """
        state = self.state
        losses = self._losses(batch)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        mine = [float(value.detach()) for value in losses.values()]
        values = dict(zip(losses, mine, strict=True))
        if self.processes.size > 1:
            count = len(batch.images)
            sums = self.processes.total([value * count for value in mine])
            values = {name: total / images for name, total in zip(losses, sums, strict=True)}
            loss = loss * (count * self.processes.size / images)
        if not math.isfinite(sum(values.values())):
            faulty = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            draws = [] if math.isfinite(sum(mine)) else batch.draws
            raise self._not_finite(f"the loss is not finite ({faulty})", draws)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip or math.inf)
        figures = {"loss": sum(values.values()), **values} | self._gradient(float(norm), batch.draws)
        if "gradient_norm" in figures:
            state.scaler.step(state.optimizer)
            state.scheduler.step()
        else:
            self._pass_over()
        state.scaler.update()
        return figures

    def _gradient(self, norm: float, draws: list[Draw]) -> dict[str, float]:
        """The norm to record. A scaler passes over a step without a finite one, and lowers its scale for the next."""
        finite = math.isfinite(norm)
        self.overflows = 0 if finite else self.overflows + 1
        if not self.state.scaler.is_enabled():
            if not finite:
                raise self._not_finite(f"the gradient is not finite (norm {norm})", draws)
            return {"gradient_norm": norm}
        if self.overflows == MOST_OVERFLOWS:
            what = f"the gradient has not been finite for {MOST_OVERFLOWS} steps, however small the scale of fp16, last"
            raise self._not_finite(what, draws)
        figures = {"passed_over": float(not finite), "scale": self.state.scaler.get_scale()}
        return figures | ({"gradient_norm": norm} if finite else {})

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The model's losses of this process's images; of an empty picture where it has none, to weigh nothing."""
        images, targets = batch.images or [torch.zeros(3, 32, 32)], batch.targets
        seeds = [seed for _, seed in batch.draws]
        if not batch.images:
            empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
            targets, seeds = [{**empty, "masks": torch.zeros(0, 32, 32, dtype=torch.uint8)}], [0]
        for sampler in self.samplers:
            sampler.seeds = seeds
        with self._autocast():
            losses: dict[str, Tensor] = self.parallel(
                [image.to(self.device, non_blocking=True) for image in images],
                [self._to_device(target) for target in targets],
            )
        return losses

    def _pass_over(self) -> None:
        """A step without an image that can be read, or a gradient: the learning rate goes on, the weights stay."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.optimizer.step()  # does nothing, but the schedule wants to see one
        self.state.scheduler.step()

    def _to_device(self, target: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in target.items()
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _not_finite(self, what: str, draws: list[Draw]) -> Exception:
        mine = [str(self.dataset.image_path(index)) for index, _ in draws]
        names = ", ".join(name for rank in self.processes.everyones(mine) for name in rank)
        message = (
            f"step {self.state.step + 1}: {what} on the images {names}; look at them, or try a lower --lr than "
            f"{self.config.lr}{', with --resume' if self.saved else ''}; {self._kept()}"
        )
        return FloatingPointError(message) if self.processes.first else ToldElsewhere(message)

    def _kept(self) -> str:
        """What is left of the run if it ends now."""
        if not self.saved or self.folder is None:
            return "nothing was saved"
        return f"the last good checkpoint is {self.folder.path / checkpoint.NAME}"

    def _save(self) -> None:
        """Writes the checkpoint and the weights."""
        random_states = self.processes.gather(random_state(self.device))
        with self.processes.together():  # nobody goes on if the first can't write
            if self.folder is not None:
                with self._writing():
                    path, config = self.folder.path / checkpoint.NAME, self.config.to_dict()
                    save_checkpoint(path, self.state, config, random_states, job(), images_of(self.dataset))
                    self.folder.saved = True
                    self._save_weights()
        self.saved = True

    def _save_weights(self) -> None:
        from ..models.weights import save_weights

        if self.folder is not None:
            save_weights(self.state.model, self.folder.path / "last.safetensors")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says of an error in writing what is left, and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self.config.out} can't be written ({error.strerror or error}); {self._kept()}; make room, then "
                "go on with the same command and --resume"
            ) from error

    def _leave(self, signal: int) -> None:
        self._save()
        raise self._interrupted(signal)

    def _interrupted(self, signal: int) -> Interrupted:
        message = (
            f"Stopped at step {self.state.step} of {self.steps} and saved; go on with the same command and --resume"
        )
        return Interrupted(message, signal)

    def _evaluated(self) -> Metrics:
        """The figures on val. All is saved by now, so that a request to stop waits for one image only."""
        if self.evaluate is None:
            return {}
        self.processes.share_statistics(self.state.model)
        message = str(self._interrupted(0))
        watch = self.state.model.register_forward_pre_hook(_LeaveIfAsked(self.stop, message))
        try:
            metrics = self.evaluate(self.state.model)
        finally:
            watch.remove()
        if self.folder is not None and self.record is not None:
            path, text = self.folder.path / "metrics.json", json.dumps(metrics, indent=2) + "\n"
            with self._writing():
                write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
                self.record.evaluation(self.state.epoch, self.state.step, metrics)
            self._show(self.record)
        return metrics

    def _show(self, record: Record) -> None:
        """Pictures for TensorBoard, if ``evaluate`` draws some; they must not end a run."""
        draw = getattr(self.evaluate, "pictures", None)
        if draw is None:
            return
        try:
            record.pictures(self.state.step, draw(self.state.model))
        except Exception as error:
            self.console.print(f"no pictures for TensorBoard: {error}", markup=False)
