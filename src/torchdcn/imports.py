"""What is to be done once another package is imported, without importing it."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(name: str, call: Callable[[], object]) -> None:
    """Calls ``call`` now if the module ``name`` is imported already, or else as soon as it is."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _OnImport(name, call))


class _OnImport(MetaPathFinder):
    """Finds the module as ever, and calls when it is there."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.call()

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]  # this one loader's
        return spec
