"""The training loop: epochs, steps, checkpoints, evaluations."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_atomically
from . import checkpoint
from .batches import Batch, BatchLoader, Draw, epoch_plan
from .checkpoint import TrainState, random_state, save_checkpoint
from .distributed import RemoteError, job_id
from .record import Means
from .repeat_factor import dataset_factors
from .resume import image_fingerprint
from .seeded_sampler import seeded_samplers
from .signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from torch import Tensor, nn

    from .config import TrainConfig
    from .distributed import Processes
    from .folder import RunFolder
    from .record import Record

    Metrics = dict[str, dict[str, float]]
    Evaluate = Callable[[nn.Module], Metrics]

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_OVERFLOWS = 50
"""Steps in a row. Each halves the loss scale: from torch's 65536 that is enough for any gradient in float16's range."""


@dataclass
class _StopHook:
    """A forward pre-hook that ends an evaluation before its next image. Small, since evaluators may copy the model."""

    stop: StopRequest
    message: str

    def __call__(self, *_: Any) -> None:
        if self.stop.signal is not None:
            raise Interrupted(self.message, self.stop.signal)


@dataclass
class TrainingLoop:
    """One process's part of a run. Only rank 0 has a folder and a record: it writes all files."""

    config: TrainConfig
    dataset: Any
    state: TrainState
    steps: int
    device: torch.device
    processes: Processes
    stop: StopRequest  # looked at between two steps
    console: Console
    evaluate: Evaluate | None
    folder: RunFolder | None
    record: Record | None

    def __post_init__(self) -> None:
        from ..data import collate

        self.saved = self.state.step > 0
        self.overflows = 0
        self.factors = dataset_factors(self.dataset, self.config.repeat_factor_threshold)
        self.samplers = seeded_samplers(self.state.model)
        self.parallel = self.processes.data_parallel(self.state.model, self.device)
        self.loader = BatchLoader(
            self.dataset,
            collate,
            min(self.config.workers, self.steps // self.config.epochs),  # an epoch's batches
            pin_memory=self.device.type == "cuda",
            skip=self.config.skip_bad_images,
        )

    def describe(self) -> str:
        """The first line of a run."""
        state, config = self.state, self.config
        trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        start = f", from step {state.step}" if state.step else ""
        shared = f" in each of {self.processes.size} processes" if self.processes.size > 1 else ""
        return (
            f"Training {config.model} ({trained / 1e6:.1f} M parameters, {len(self.dataset.class_names)} classes) on "
            f"{len(self.dataset)} images, epochs: {config.epochs}, batch size: {config.batch_size}{shared}{start}, "
            f"on {self.device}, into {config.out}"
        )

    def run(self) -> Metrics:
        """Trains to the end of the run.

        Returns:
            The last figures on val.
        """
        with self.loader:  # an error's traceback keeps this object; the workers must end all the same
            return self._run()

    def _run(self) -> Metrics:
        metrics: Metrics = {}
        if self.state.step and self.folder is not None:
            # A process that was killed between its two files has left the weights of the checkpoint before.
            with self._writing():
                self._save_weights()
        # The run may have been stopped before the evaluation of this step, or after it.
        known = self.record.figures(self.state.step) if self.record is not None else {}
        known = self.processes.broadcast_from_first(known)
        while True:
            if self._evaluation_is_due():
                if known:
                    self.console.print("Evaluated already: the figures are in metrics.json", highlight=False)
                metrics = known or self._evaluate()
            if self.state.epoch >= self.config.epochs:  # it is larger if a run is resumed with fewer epochs
                break
            self._train_epoch()
            known = {}
        if self.state.skipped:
            names = "".join(f"\n  {reason}" for reason in self.state.skipped.values())
            self.console.print(f"Images skipped, {len(self.state.skipped)} in all:{names}", markup=False)
        return metrics

    def _evaluation_is_due(self) -> bool:
        """Whether the run stands at the end of an epoch that is followed by an evaluation."""
        state, every = self.state, self.config.eval_every
        if state.epoch >= self.config.epochs:
            return True
        return state.epoch > 0 and not state.batch and every > 0 and state.epoch % every == 0

    def _train_epoch(self) -> None:
        """Trains on the batches of the epoch that are left, and saves."""
        config, state = self.config, self.state
        batch_size = config.batch_size * self.processes.size
        plan = epoch_plan(len(self.dataset), batch_size, config.seed, state.epoch, self.factors)[state.batch :]
        means = Means()
        state.model.train()
        with closing(self.loader.load([self.processes.shard(draws) for draws in plan])) as batches:
            for left in reversed(range(len(plan))):
                batch, images = self._next_batch(batches)
                lr = max(group["lr"] for group in state.optimizer.param_groups)
                if images:
                    means.add(self._train_step(batch, images), images)
                else:
                    self._skip_step()
                state.batch, state.step = state.batch + 1, state.step + 1
                self._log_step(means, lr, last=not left)
                if left and state.step % config.checkpoint_every == 0:
                    self._save()
        if len(state.skipped) == len(self.dataset):
            reason = next(iter(state.skipped.values()))
            raise ValueError(f"data: none of the {len(self.dataset)} images can be read, the first one: {reason}")
        state.epoch, state.batch = state.epoch + 1, 0
        self.processes.check_same_weights(state.model)
        self._save()

    def _log_step(self, means: Means, lr: float, last: bool) -> None:
        if self.record is None:
            return
        state = self.state
        label = f"epoch {state.epoch + 1}/{self.config.epochs}"
        self.record.advance(label, state.step)
        if (state.step % self.config.log_every == 0 or last) and (figures := means.pop()):
            with self._writing():
                self.record.losses(label, state.step, {"epoch": state.epoch + 1, **figures, "lr": lr})

    def _next_batch(self, batches: Iterator[Batch]) -> tuple[Batch, int]:
        """This process's part of the next batch, and the number of images in all parts.

        All processes stop here, before the same step, if one of them has an error or a request to stop.
        """
        batch, error = Batch([], [], [], []), None
        try:
            batch = next(batches)
        except Exception as met:
            error = met
        signal = int(self.stop.signal or 0)
        images, faults, errors, stops = self.processes.all_reduce(
            [len(batch.images), len(batch.faults), error is not None, signal > 0]
        )
        if errors:
            if self.saved:
                self._save()
            self.processes.raise_on_all(error)
        if stops:
            self._save_and_stop(max(self.processes.all_gather(signal)))
        if faults:
            self._record_skipped(batch)
        return batch, int(images)

    def _record_skipped(self, batch: Batch) -> None:
        own = [(str(self.dataset.image_path(fault.index)), str(fault.error)) for fault in batch.faults]
        for path, reason in (fault for rank in self.processes.all_gather(own) for fault in rank):
            if path in self.state.skipped:
                continue
            self.state.skipped[path] = reason
            self.console.print(f"skipped: {reason}", markup=False, highlight=False, soft_wrap=True)
            if self.record is not None:
                with self._writing():
                    self.record.skipped(self.state.step, path, reason)

    def _train_step(self, batch: Batch, images: int) -> dict[str, float]:
        """One step of the optimiser; gives the losses, their sum and the gradient's norm.

        Each process averages over its own images, as other detectors do. The average over the processes is weighted by
        the numbers of their images: if all images have as many samples, that is the loss of the whole batch.
        """
        state = self.state
        losses = self._losses(batch)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        own = [float(value.detach()) for value in losses.values()]
        values = dict(zip(losses, own, strict=True))
        if self.processes.size > 1:
            count = len(batch.images)
            sums = self.processes.all_reduce([value * count for value in own])
            values = {name: total / images for name, total in zip(losses, sums, strict=True)}
            loss = loss * (count * self.processes.size / images)
        if not math.isfinite(sum(values.values())):
            faulty = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            draws = [] if math.isfinite(sum(own)) else batch.draws
            raise self._not_finite(f"the loss is not finite ({faulty})", draws)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip or math.inf)
        figures = {"loss": sum(values.values()), **values} | self._check_gradient(float(norm), batch.draws)
        if "gradient_norm" in figures:
            state.scaler.step(state.optimizer)
            state.scheduler.step()
        else:
            self._skip_step()
        state.scaler.update()
        return figures

    def _check_gradient(self, norm: float, draws: list[Draw]) -> dict[str, float]:
        """The gradient's figures for the record; without its norm if the step is to be skipped.

        With fp16 a gradient that is not finite skips the step, and the scaler lowers the loss scale for the next one.
        """
        finite = math.isfinite(norm)
        self.overflows = 0 if finite else self.overflows + 1
        if not self.state.scaler.is_enabled():
            if not finite:
                raise self._not_finite(f"the gradient is not finite (norm {norm})", draws)
            return {"gradient_norm": norm}
        if self.overflows == MAX_OVERFLOWS:
            what = f"the gradient has not been finite for {MAX_OVERFLOWS} steps, however small the scale of fp16, last"
            raise self._not_finite(what, draws)
        figures = {"passed_over": float(not finite), "scale": self.state.scaler.get_scale()}
        return figures | ({"gradient_norm": norm} if finite else {})

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of this process's images. A process without images uses an empty one, which is weighted by 0."""
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

    def _skip_step(self) -> None:
        """A step without readable images or a finite gradient: the learning rate moves on, the weights stay."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.optimizer.step()  # without gradients it changes nothing, but the scheduler warns if it is left out
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
        own = [str(self.dataset.image_path(index)) for index, _ in draws]
        names = ", ".join(name for rank in self.processes.all_gather(own) for name in rank)
        message = (
            f"step {self.state.step + 1}: {what} on the images {names}; look at them, or try a lower --lr than "
            f"{self.config.lr}{', with --resume' if self.saved else ''}; {self._last_checkpoint()}"
        )
        return FloatingPointError(message) if self.processes.first else RemoteError(message)

    def _last_checkpoint(self) -> str:
        """Says which checkpoint is left if the run ends now."""
        if not self.saved or self.folder is None:
            return "nothing was saved"
        return f"the last good checkpoint is {self.folder.path / checkpoint.NAME}"

    def _save(self) -> None:
        """Writes the checkpoint and the weights."""
        random_states = self.processes.gather(random_state(self.device))
        with self.processes.raise_together():  # no process may train on if rank 0 can't write
            if self.folder is not None:
                with self._writing():
                    path, config = self.folder.path / checkpoint.NAME, self.config.to_dict()
                    images = image_fingerprint(self.dataset)
                    save_checkpoint(path, self.state, config, random_states, job_id(), images)
                    self.folder.saved = True
                    self._save_weights()
        self.saved = True

    def _save_weights(self) -> None:
        from ..models.weights import save_weights

        if self.folder is not None:
            save_weights(self.state.model, self.folder.path / "last.safetensors")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Adds to an error in writing which checkpoint is left, and how to go on."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self.config.out} can't be written ({error.strerror or error}); {self._last_checkpoint()}; make room,"
                " then go on with the same command and --resume"
            ) from error

    def _save_and_stop(self, signal: int) -> None:
        self._save()
        raise self._interrupted(signal)

    def _interrupted(self, signal: int) -> Interrupted:
        message = (
            f"Stopped at step {self.state.step} of {self.steps} and saved; go on with the same command and --resume"
        )
        return Interrupted(message, signal)

    def _evaluate(self) -> Metrics:
        """The figures on val. Everything is saved by now, so a request to stop waits for one image only."""
        if self.evaluate is None:
            return {}
        self.processes.broadcast_buffers(self.state.model)
        message = str(self._interrupted(0))
        hook = self.state.model.register_forward_pre_hook(_StopHook(self.stop, message))
        try:
            metrics = self.evaluate(self.state.model)
        finally:
            hook.remove()
        if self.folder is not None and self.record is not None:
            path, text = self.folder.path / "metrics.json", json.dumps(metrics, indent=2) + "\n"
            with self._writing():
                write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
                self.record.evaluation(self.state.epoch, self.state.step, metrics)
            self._record_pictures(self.record)
        return metrics

    def _record_pictures(self, record: Record) -> None:
        """Pictures for TensorBoard, if ``evaluate`` draws some. A fault in drawing must not end the run."""
        draw = getattr(self.evaluate, "pictures", None)
        if draw is None:
            return
        try:
            record.pictures(self.state.step, draw(self.state.model))
        except Exception as error:
            self.console.print(f"no pictures for TensorBoard: {error}", markup=False)
