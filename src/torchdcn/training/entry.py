"""The entry to training: settings in, a folder with the trained weights out."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..nn.layout import to_device
from .checkpoint import restore
from .distributed import process_group
from .folder import RunFolder, lock_folder
from .loop import TrainingLoop
from .record import Record
from .repeat_factor import dataset_factors, epoch_length
from .resume import find_checkpoint
from .signals import stop_requests
from .start import build_model, initial_state, open_data, prepare, print_settings, uses_cuda

if TYPE_CHECKING:
    from .config import TrainConfig
    from .distributed import Processes
    from .loop import Evaluate, Metrics

NOTICE = "stopping after this step, and saving; once more leaves at once, without saving\n"


def train(
    config: TrainConfig, evaluate: Evaluate | None = None, *, resume: bool = False, console: Console | None = None
) -> Metrics:
    """Trains a detector and leaves its weights, figures and checkpoint in ``config.out``.

    The folder gets ``config.json``, ``metrics.jsonl``, TensorBoard events, ``checkpoint.pt`` with the one before it
    (``checkpoint-previous.pt``) and, at every checkpoint, ``last.safetensors``; with ``evaluate`` also
    ``metrics.json``. An earlier run found there is moved aside.

    Under ``torchrun`` every process calls this; each trains on its part of every batch, and rank 0 writes.

    Args:
        config: Everything that decides the run.
        evaluate: Called with the model every ``config.eval_every`` epochs and at the end, in every process; gives the
            AP figures of :func:`torchdcn.evaluation.evaluate_coco`. It may have three methods more. ``open()`` is
            called before the training data is opened. ``check(model)`` is called before the first step; both are to
            raise early what would else end the run late. ``pictures(model)`` is called after an evaluation, in rank 0,
            and gives pictures for TensorBoard by name.
        resume: Go on from ``config.out``'s checkpoint; where there is none, start afresh and say so.
        console: Where progress is shown; standard output by default.

    Returns:
        What ``evaluate`` gave at the end, or an empty dict.

    Raises:
        ValueError: Data, settings, weights or a checkpoint that do not fit.
        OSError: A file that can't be read, or ``config.out`` can't be written.
        FloatingPointError: The loss or its gradient is not finite; the message names the images.
        Interrupted: Ctrl-C or SIGTERM has stopped the run, after it was saved.
        ConnectionError: Another process of the run has ended.
        RemoteError: Another process of the run has met an error, and raises it.

    Example:
        >>> from torchdcn.training import TrainConfig, train
        >>> config = TrainConfig("synthetic", "mask_rcnn_r18_fpn_mdconv_c3-c5", "runs/try", epochs=1, min_size=128)
        >>> train(config)  # doctest: +SKIP
        {}
    """
    with process_group(uses_cuda(config)) as processes:
        shown = (console or Console()) if processes.first else Console(quiet=True)
        return _train(config, evaluate, resume, shown, processes)


def _train(
    config: TrainConfig, evaluate: Evaluate | None, resume: bool, console: Console, processes: Processes
) -> Metrics:
    # The order of these steps matters; each comment says why its step stands where it does.
    with ExitStack() as stack:
        # Settings and device come first: a typing error is reported before anything is made, drawn or downloaded.
        with processes.raise_together():
            settings, device = prepare(config, processes)
        # The lock comes before the checkpoint is read, since another run could be about to write the next one. It is
        # held to the end, so that it is also released last.
        with processes.raise_together():
            if processes.first:
                stack.enter_context(lock_folder(Path(config.out)))
        # Val comes before train: it is smaller, so that its faults are reported sooner.
        if (open_val := getattr(evaluate, "open", None)) is not None:
            processes.first_on_host_then_rest(open_val)
        # The data comes before the checkpoint, which is compared with its images, and before the model, which takes its
        # classes.
        dataset = processes.first_on_host_then_rest(lambda: open_data(config, settings, console))
        # The checkpoint comes before the model: one of other settings is refused before weights are downloaded.
        saved = find_checkpoint(config, dataset, processes, resume, console)
        # The model is laid out before the optimiser is made, which remembers its moments in the layout of the weights.
        model = to_device(processes.first_on_host_then_rest(lambda: build_model(config, dataset)), device)
        if (check := getattr(evaluate, "check", None)) is not None:
            with processes.raise_together():
                check(model)
        images = epoch_length(len(dataset), dataset_factors(dataset, config.repeat_factor_threshold))
        steps = math.ceil(images / (config.batch_size * processes.size)) * config.epochs
        state = initial_state(model, steps, config, device, processes)
        # The checkpoint's generators replace those that building the model has advanced.
        with processes.raise_together():
            if saved is not None:
                restore(state, saved, processes.rank)
        # From here on files are written, so everything that can be refused has been checked: an earlier run in the
        # folder is moved aside only by a run that starts. The record reads what the folder keeps of the run so far.
        folder = record = None
        with processes.raise_together():
            if processes.first:
                folder = stack.enter_context(RunFolder(Path(config.out), resumed=saved is not None))
                if folder.moved_to:
                    console.print(f"An earlier run in {config.out} was moved to {folder.moved_to}", highlight=False)
                config.save(folder.path / "config.json")
                record = stack.enter_context(Record(folder.path, console, steps, done=state.step))
        # Signals come last: until now Ctrl-C ends the process at once, since there is nothing to save.
        stop = stack.enter_context(stop_requests(NOTICE if processes.first else ""))
        loop = TrainingLoop(config, dataset, state, steps, device, processes, stop, console, evaluate, folder, record)
        console.print(loop.describe(), highlight=False, soft_wrap=True)
        print_settings(config, steps, processes.size, console)
        return loop.run()
