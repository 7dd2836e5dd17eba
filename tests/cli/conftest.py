from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from torchdcn.cli import main
from torchdcn.data import make_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; gives its exit code, and what it wrote to both streams.

    Where a test file has a ``VERB``, these words come before the arguments.
    """
    words = getattr(request.module, "VERB", ())

    def command(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([*words, *map(str, arguments)])
        written = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, written.out, written.err

    return command


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny scenes to train on and two to evaluate on."""
    return make_synthetic(tmp_path_factory.mktemp("scenes") / "coco", train=4, val=2, size=64, seed=0)
