"""What is to be done once another package is imported, without importing it."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(name: str, call: Callable[[], object]) -> None:
    """Calls ``call`` now if the module ``name`` is imported already, or else as soon as it is."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _OnImport(name, call))


class _OnImport(MetaPathFinder):
    """Finds the module as ever, and calls once it has run: nobody's ``import`` may fail of it, nor use it up."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: Sequence[str] | None = None, *_: Any) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is None or spec.loader is None:
            return None  # other finders may know it: then nothing is called
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            with suppress(ValueError):
                sys.meta_path.remove(self)
            self._call()

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]  # this one loader's
        return spec

    def _call(self) -> None:
        try:
            self.call()
        except Exception as error:
            # Python's word for: another thread is importing just that, and waits for the module that has now run.
            if type(error).__name__ != "_DeadlockError":
                warnings.warn(f"{self.name} is imported, but not what torchdcn adds to it: {error}", stacklevel=2)
