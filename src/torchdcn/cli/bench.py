"""``torchdcn bench``: speed and memory beside others'."""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import Group, app, bad_usage, verb
from .options import one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..bench.contenders import Shape
    from ..bench.operators import Measurement

bench = typer.Typer(cls=Group, help="Measures speed and memory beside dense convolution and other implementations.")
app.add_typer(bench, name="bench")

DTYPES = ("float32", "bfloat16", "float16", "float64")
SUITES = ("resnet50", "shapes", "scaling")


@bench.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


Own = Annotated[
    list[str] | None, typer.Option("--shape", metavar="CxHxW", help="Channels, height, width; as often as you like.")
]


@verb("ops", example="torchdcn bench ops --shape 256x50x84 --deform-groups 4", group=bench)
def ops(
    suite: Annotated[
        str,
        typer.Option(
            help="resnet50: a ResNet-50's layers, beside all others; shapes: groups, windows and channels of all kinds;"
            " scaling: 1 to n threads."
        ),
    ] = "resnet50",
    shape: Own = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at a time; 1 by default.")] = None,
    kernel: Annotated[
        str | None, typer.Option(metavar="K or HxW", help="Window, as in 3 or 5x3; 3 by default.")
    ] = None,
    stride: Annotated[str | None, typer.Option(metavar="S or HxW", help="Step between outputs.")] = None,
    dilation: Annotated[str | None, typer.Option(metavar="D or HxW", help="Step between taps.")] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Groups of the convolution.")] = None,
    deform_groups: Annotated[int | None, typer.Option(min=1, help="Groups of channels that move apart.")] = None,
    dtype: Annotated[
        str, typer.Option(help=f"{', '.join(DTYPES)}. Beside 16 bits ours runs in float32 too.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Of torch and onnxruntime; with --suite scaling several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; slow contenders take part in three.")] = 15,
    no_peers: Annotated[bool, typer.Option("--no-peers", help="Leave torchvision and onnxruntime out.")] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Don't measure memory.")] = False,
    forward_only: Annotated[bool, typer.Option("--forward-only", help="Don't run backward.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File that gets all figures.")] = None,
) -> None:
    """Times deformable convolution beside dense convolution, torchvision and onnxruntime, in turn; and its memory."""
    import torch

    from ..bench.operators import bench_operator, with_memory
    from ..bench.tables import show_operators
    from ..files import check_file
    from ..training.device import choose_device

    one_of(suite, SUITES, "--suite")
    one_of(dtype, DTYPES, "--dtype")
    counts = threads or _default_threads(suite, torch.get_num_threads())
    if len(counts) > 1 and suite != "scaling":
        bad_usage(f"--threads: several numbers go with --suite scaling, got {', '.join(map(str, counts))}")
    geometry: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": dilation}
    geometry |= {"groups": groups, "deform_groups": deform_groups}
    shapes = _shapes(suite, shape or [], batch, {name: value for name, value in geometry.items() if value is not None})
    place = str(choose_device(device))
    if json_file is not None:
        check_file(json_file, "json")

    beside_all = suite == "resnet50"
    with bar("timing") as progress:
        found = bench_operator(
            shapes, dtype=dtype, device=place, threads=counts, passes=(False,) if forward_only else (False, True),
            rounds=rounds, peers=beside_all and not no_peers, progress=progress,
        )  # fmt: skip
    if beside_all and not no_memory:
        with bar("measuring memory") as progress:
            found = with_memory(found, progress)
    command = _command(
        suite=suite, shape=shape, batch=batch, **geometry, dtype=dtype, device=device, threads=counts, rounds=rounds,
        no_peers=no_peers, no_memory=no_memory, forward_only=forward_only,
    )  # fmt: skip
    show_operators(suite, found, rounds, command)
    if json_file is not None:
        _write(json_file, found, rounds, command)


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, drawn only when it is called: a thread that redraws it would take part in what is timed."""
    from rich.console import Console
    from rich.progress import Progress

    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal, auto_refresh=False) as progress:
        task = progress.add_task(label, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, refresh=True)

        yield advance


def _default_threads(suite: str, count: int) -> list[int]:
    """The number that torch has; for the scaling suite the powers of two below it, too."""
    powers = [2**i for i in range(count.bit_length()) if 2**i < count] if suite == "scaling" else []
    return [*powers, count]


def _shapes(suite: str, own: Sequence[str], batch: int | None, geometry: dict[str, Any]) -> list[Shape]:
    from dataclasses import replace

    from ..bench.contenders import RESNET50, SCALING, VARIED, Shape

    if suite != "resnet50" and (suite == "shapes" or not own):
        given = [*(["shape"] if own else []), *(["batch"] if batch else []), *geometry]
        if given:
            bad_usage(f"--{given[0].replace('_', '-')}: --suite {suite} brings its own; leave one of the two out")
        return list(SCALING if suite == "scaling" else VARIED)
    for name in ("kernel", "stride", "dilation"):
        if name in geometry:
            geometry[name] = _pair(geometry[name], f"--{name}")
    try:
        bases = [Shape(*_numbers(text)) for text in own] or RESNET50
        return [replace(base, batch=batch or 1, **geometry) for base in bases]
    except ValueError as error:
        name, _, rest = str(error).partition(": ")
        bad_usage(f"--{name.replace('_', '-')}: {rest}")


def _numbers(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text, re.ASCII)
    channels, height, width = map(int, match.groups()) if match else (0, 0, 0)
    if not channels * height * width:
        raise ValueError(f"shape: expected CxHxW such as 256x50x84, got {text!r}")
    return channels, height, width


def _pair(text: str, option: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII)
    if not match:
        bad_usage(f"{option}: expected a number such as 3 or two such as 5x3, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _command(**options: Any) -> str:
    """The command line that gives these figures again, with ``--threads``, whose default is the machine's."""
    defaults = {"suite": "resnet50", "dtype": "float32", "device": "cpu", "rounds": 15}
    words = ["torchdcn", "bench", "ops"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        elif value not in (None, False) and value != defaults.get(name):
            words += [flag, str(value)]
    asked = os.environ.get("TORCHDCN_ISA")
    return (f"TORCHDCN_ISA={shlex.quote(asked)} " if asked else "") + shlex.join(words)


def _write(path: Path, found: Sequence[Measurement], rounds: int, command: str) -> None:
    from ..bench.operators import geometric_means
    from ..bench.timing import machine
    from ..files import write_atomically

    means = {}
    for training, name in ((False, "forward"), (True, "forward + backward")):
        if part := [m for m in found if m.training == training]:
            means[name] = geometric_means(part)
    record = {
        "command": command,
        "machine": machine(found[0].device),
        "rounds": rounds,
        "measurements": [measurement.to_json() for measurement in found],
        "geometric_mean_x_dense": means,
    }
    write_atomically(path, lambda file: file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"))
