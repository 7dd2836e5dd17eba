"""The training loop's front: settings in, a folder with the trained weights out."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..nn.layout import match_layout, to_device
from .checkpoint import restore
from .distributed import joined
from .folder import RunFolder, alone_in
from .recipes import lr_factor
from .record import Record
from .repeats import dataset_factors, epoch_length
from .run import Run
from .setup import checkpoint_to_resume, create, find_device, on_cuda, open_data, start, tell_settings
from .signals import stop_requests

if TYPE_CHECKING:
    from .config import TrainConfig
    from .distributed import Processes
    from .run import Evaluate, Metrics

NOTICE = "stopping after this step, and saving; once more leaves at once, without saving\n"


def train(
    config: TrainConfig, evaluate: Evaluate | None = None, *, resume: bool = False, console: Console | None = None
) -> Metrics:
    """Trains a detector and leaves its weights, figures and checkpoint in ``config.out``.

    The folder gets ``config.json``, ``metrics.jsonl``, TensorBoard events, ``checkpoint.pt`` with the one before it
    (``checkpoint-previous.pt``) and, at every checkpoint, ``last.safetensors``; with ``evaluate`` also
    ``metrics.json``. An earlier run found there is moved aside.

    Under ``torchrun`` every process calls this; each trains on its share of every batch, and the first one writes.

    Args:
        config: Everything that decides the run.
        evaluate: Called with the model every ``config.eval_every`` epochs and at the end, in every process; gives the
            AP figures of :func:`torchdcn.evaluation.evaluate_coco`. If it has a method ``check``, that is called with
            the model before the first step, to raise then what it would raise at the end. If it has a method
            ``pictures``, that is called with the model after it, in the first process, and gives pictures for
            TensorBoard by name.
        resume: Go on from ``config.out``'s checkpoint; where there is none, start afresh and say so.
        console: Where progress is shown; standard output by default.

    Returns:
        What ``evaluate`` gave at the end, or an empty dict.

    Raises:
        ValueError: Data, settings, weights or a checkpoint that do not fit.
        OSError: A file that can't be read, or ``config.out`` can't be written.
        FloatingPointError: The loss or its gradient is not finite; the message names the images.
        Interrupted: Ctrl-C or SIGTERM; all is saved.
        ConnectionError: Another process of the run is gone.
        ToldElsewhere: Another process of the run has met an error, and raises it.

    Example:
        >>> from torchdcn.training import TrainConfig, train
        >>> config = TrainConfig("synthetic", "mask_rcnn_r18_fpn_mdconv_c3-c5", "runs/try", epochs=1, min_size=128)
        >>> train(config)  # doctest: +SKIP
        {}
    """
    with joined(on_cuda(config)) as processes, ExitStack() as held:
        with processes.together():
            if processes.first:  # before a checkpoint is read: another run could be about to write the next
                held.enter_context(alone_in(Path(config.out)))
        shown = (console or Console()) if processes.first else Console(quiet=True)
        return _train(config, evaluate, resume, shown, processes)


def _train(
    config: TrainConfig, evaluate: Evaluate | None, resume: bool, console: Console, processes: Processes
) -> Metrics:
    with processes.together():
        device = find_device(config, processes)
    dataset = processes.in_turn(lambda: open_data(config, console))
    saved = checkpoint_to_resume(config, dataset, processes, resume, console)
    model = to_device(processes.in_turn(lambda: create(config, dataset)), device)
    with processes.together():
        if (check := getattr(evaluate, "check", None)) is not None:
            check(model)
    images = epoch_length(len(dataset), dataset_factors(dataset, config.repeat_factor_threshold))
    steps = math.ceil(images / (config.batch_size * processes.size)) * config.epochs
    state = start(model, steps, config, device, processes.rank, processes.size)
    with processes.together():
        if saved is not None:
            rates = list(state.scheduler.base_lrs)
            restore(state, saved, processes.rank)
            match_layout(state.optimizer)
            # The rates in the checkpoint are those of its own --lr and number of epochs.
            state.scheduler.base_lrs = rates
            for group, base in zip(state.optimizer.param_groups, rates, strict=True):
                group["initial_lr"], group["lr"] = base, base * lr_factor(state.step, steps, config)
    folder = record = None
    with ExitStack() as stack:
        with processes.together():
            if processes.first:
                folder = stack.enter_context(RunFolder(Path(config.out), resumed=saved is not None))
                if folder.moved_to:
                    console.print(f"An earlier run in {config.out} was moved to {folder.moved_to}", highlight=False)
                config.save(folder.path / "config.json")
                record = stack.enter_context(Record(folder.path, console, steps, done=state.step))
        stop = stack.enter_context(stop_requests(NOTICE if processes.first else ""))
        run = Run(config, dataset, state, steps, device, processes, stop, console, evaluate, folder, record)
        console.print(run.describe(), highlight=False, soft_wrap=True)
        tell_settings(config, steps, processes.size, console)
        return run.to_the_end()
