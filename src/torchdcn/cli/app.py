"""The program around the verbs: registration, ``--verbose``, and errors as one line with an exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from .threads import limit_spinning
from .words import flags_of, said, said_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


class _Plain:
    """Help without ``<bool>`` beside flags that take no value, and without braces around an argument's name."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of typer's class beside this one
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("...}...", "...").strip("{}") for piece in super().collect_usage_pieces(ctx)]  # type: ignore[misc]


class Command(_Plain, TyperCommand):
    """A verb."""


class Group(_Plain, TyperGroup):
    """The program, or a verb of several."""


app = typer.Typer(
    name="torchdcn",
    cls=Group,
    help="Deformable ConvNets v2: train, evaluate and use detectors that move their samples to where the object is.",
    epilog="Start with: torchdcn demo --out runs/demo",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FAULT, USAGE = 1, 2


def verb(name: str, example: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as ``torchdcn NAME``, with ``--verbose`` and an example under its help.

    Errors that begin with the name of one of the function's arguments begin with its flag.

    With a ``group`` it is ``torchdcn GROUP NAME``.

    The help is the docstring's first paragraph.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*, verbose: bool, **arguments: Any) -> None:
            if verbose:
                _print_surroundings()
            with said_as(flags):
                function(**arguments)

        signature = inspect.signature(function, eval_str=True)
        help_text = "Show versions, and a traceback if something fails."
        verbose = inspect.Parameter(
            "verbose", inspect.Parameter.KEYWORD_ONLY, default=False,
            annotation=Annotated[bool, typer.Option("--verbose", help=help_text)],
        )  # fmt: skip
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
        flags = flags_of(parameters)
        command.__signature__ = signature.replace(parameters=[*parameters, verbose])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*parameters, verbose]}
        text = (inspect.getdoc(function) or "").split("\n\n", 1)[0]
        group.command(name, cls=Command, help=text, epilog=f"Example: [bold]{example}[/bold]")(command)
        return function

    return register


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"torchdcn {installed('torchdcn')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def console(quiet: bool = False) -> Console:
    """Where the verbs print, if they do."""
    from rich.console import Console

    # Without a terminal rich would fold everything to 80 columns, in log files too.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120, quiet=quiet)


def bad_usage(message: str) -> NoReturn:
    """Ends the command with one line and the exit code of bad usage."""
    if first_process():
        _complain(message)
    raise typer.Exit(USAGE)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the program and exits: 0 on success, 1 on bad input, 2 on bad usage, 128 + signal where one stopped it."""
    if arguments is None:  # the program, and not a test or a notebook that calls it
        limit_spinning()
        arguments = sys.argv[1:]
    with warnings.catch_warnings():
        if "--verbose" not in arguments:
            warnings.showwarning = _show_warning
        sys.exit(_run(arguments, "--verbose" in arguments))


def _run(arguments: list[str], verbose: bool) -> int:
    try:
        code = app(args=arguments, prog_name="torchdcn", standalone_mode=False)
    except typer.Abort:
        return 130
    except BrokenPipeError:  # `torchdcn models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's and click's own: the command line itself is wrong
            place = getattr(getattr(error, "ctx", None), "command_path", "torchdcn")
            _complain(f"{error.format_message()} (see {place} --help)")
            return USAGE
        if hasattr(error, "signal"):  # training.Interrupted, which is good news
            if first_process():
                typer.echo(str(error), err=True)
            return 128 + int(error.signal)
        if getattr(error, "quiet", False):  # training.RemoteError: another process reports it
            return FAULT
        if verbose:
            raise
        _complain(_one_line(error))
        return FAULT
    return code if isinstance(code, int) else 0


def _one_line(error: Exception) -> str:
    text = said(error)
    if isinstance(error, (ValueError, TypeError, OSError, ArithmeticError, ImportError)) and text:
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # Python's, or torch's for a GPU
        return text or "out of memory"
    if type(error) is RuntimeError and text:
        return f"{text} (--verbose shows where)"
    return f"unexpected {type(error).__name__}: {text} (--verbose shows where)"


def _complain(message: str) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(message, err=True)


def first_process() -> bool:
    """Whether this process prints, of those that torchrun has started with the same arguments."""
    return os.environ.get("RANK", "0") == "0"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, (DeprecationWarning, FutureWarning)) or not first_process():
        return
    typer.secho("warning: ", fg="yellow", nl=False, err=True)
    typer.echo(" ".join(str(message).split()), err=True)


def _print_surroundings() -> None:
    import platform
    from importlib.metadata import version

    import torch

    from ..ops import available_backends

    packages = ("torchdcn", "torch", "torchvision", "numpy")
    typer.echo(f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages), err=True)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    typer.echo(f"{torch.get_num_threads()} CPU threads; GPUs: {', '.join(gpus) or 'none'}", err=True)
    for name, reason in available_backends().items():
        typer.echo(f"backend {name}: {reason or 'ready'}", err=True)
