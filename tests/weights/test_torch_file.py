"""Checkpoints as trainers write them, in both of torch's formats, and files that want code to run."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections import OrderedDict, defaultdict, deque
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from torchdcn.models import create_model
from torchdcn.weights.read import read_weights
from torchdcn.weights.torch_file import Inert, read_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])


@contextmanager
def modules_of_mmengine() -> Iterator[Any]:
    """Classes that exist while a file is written, and nowhere when it is read."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> None: ...

    class ConfigDict(dict[str, Any]): ...

    class Config:
        def __init__(self) -> None:
            self._cfg_dict = ConfigDict(model=ConfigDict(type="FasterRCNN"))

        def __getstate__(self) -> Any:
            return (self._cfg_dict, "cfg.py", "text", None)

        def __setstate__(self, state: Any) -> None: ...

    places = {"mmengine.logging.history_buffer": (HistoryBuffer,), "mmengine.config.config": (ConfigDict, Config)}
    modules: dict[str, Any] = {}
    for place, classes in places.items():
        parts = place.split(".")
        modules |= {name: ModuleType(name) for name in (".".join(parts[: n + 1]) for n in range(len(parts)))}
        for cls in classes:
            cls.__module__, cls.__qualname__ = place, cls.__name__
            setattr(modules[place], cls.__name__, cls)
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.min"
    sys.modules.update(modules)
    try:
        yield lambda: {"log": HistoryBuffer(), "config": Config(), "dict": ConfigDict(lr=0.02)}
    finally:
        for name in modules:
            del sys.modules[name]


class Call:
    """Pickled as a call of a function, which an unpickler makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


STATE = OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 3, dtype=torch.float16), c=torch.tensor(7))


def checkpoint(objects: dict[str, Any]) -> dict[str, Any]:
    """What versions 1 to 3 of mmdetection's trainers put into a file, all at once."""
    meta = {
        "CLASSES": ("cat", "dog"),
        "PALETTE": None,
        "config": "model = dict(type='FasterRCNN')",
        "time": dt.datetime(2020, 1, 30),
        "hook_msgs": {"best_score": np.float64(0.4), "ids": np.arange(3), "names": np.array(["x", "y"])},
        "queue": deque([1, 2], maxlen=3),
        "lists": defaultdict(list, {1: [2]}),
        "path": Path("work_dirs"),
        "sets": ({1}, frozenset([2]), slice(3), 1j, b"bytes"),
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": np.float32(0.1)}]}
    return {
        "state_dict": STATE,
        "meta": meta | objects,
        "optimizer": optimizer,
        "param_schedulers": [{"last_step": np.int64(3)}],
        "message_hub": {"log_scalars": OrderedDict(loss=objects["log"])},
    }


@FORMATS
def test_what_trainers_keep_beside_the_weights_does_not_matter(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "epoch_12.pth"
    with modules_of_mmengine() as objects:
        torch.save(checkpoint(objects()), path, _use_new_zipfile_serialization=zipped)
    file = read_weights(path)
    assert not any("mmengine" in str(entry) for entry in torch.serialization.get_safe_globals())
    assert file.class_names == ("cat", "dog")
    assert list(file.tensors) == list(STATE)
    for key, value in STATE.items():
        assert torch.equal(file.tensors[key], value)
        assert file.tensors[key].dtype == value.dtype
    content = read_torch(path)
    assert isinstance(content["meta"]["log"], Inert)
    assert content["meta"]["config"].__class__ is Inert
    assert content["meta"]["dict"] == {"lr": 0.02}
    assert content["meta"]["lists"] == {1: [2]}
    assert content["meta"]["queue"] == [1, 2]


@FORMATS
@pytest.mark.parametrize("place", ["meta", "state_dict", "alone", "nested"])
@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, __import__], ids=lambda f: f.__name__)
def test_code_in_a_file_does_not_run(
    function: Callable[..., Any], place: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    argument = {
        "system": "touch ran", "mkdir": "ran", "eval": "open('ran', 'w')", "exec": "open('ran', 'w')",
        "__import__": "payload",
    }[function.__name__]  # fmt: skip
    call = Call(function, argument)
    content: Any = {"state_dict": dict(STATE), "meta": {}}
    if place == "alone":
        content = call
    elif place == "nested":
        content["meta"]["x"] = [{"y": (call, {"z": call})}]
    else:
        content[place]["x"] = call
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    try:
        file = read_weights(tmp_path / "evil.pth")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 # some are refused, some read without the call
        assert "evil.pth: " in str(error)  # noqa: PT017
        assert place in ("state_dict", "alone") or function in (os.system, os.mkdir)
    else:
        assert place in ("meta", "nested")
        assert list(file.tensors) == list(STATE)
    assert not (tmp_path / "ran").exists()
    assert "payload" not in sys.modules


def test_what_a_file_wants_to_run_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": dict(STATE), "meta": Call(os.system, "true")}, tmp_path / "evil.pth")
    module = os.system.__module__
    with pytest.raises(ValueError, match=rf"evil\.pth: refers to {module}\.system, which no weights file needs; noth"):
        read_weights(tmp_path / "evil.pth")


def test_something_else_under_a_tensors_name_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": dict(STATE) | {"fc": np.zeros(3)}}, tmp_path / "numpy.pth")
    with pytest.raises(ValueError, match=r"expected a dict of tensors, got an object that is not read under 'fc'"):
        read_weights(tmp_path / "numpy.pth")


def test_containers_that_torch_does_not_fill_are_one_line(tmp_path: Path) -> None:
    with modules_of_mmengine() as objects:
        kind = type(objects()["dict"])
        kind.__module__ = "mmengine.config.config"
        kind.__qualname__ = kind.__name__ = "Other"
        sys.modules["mmengine.config.config"].Other = kind  # type: ignore[attr-defined]
        torch.save({"state_dict": dict(STATE), "meta": kind(a=1)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: holds Python objects that are not loaded; save the state_dict"):
        read_weights(tmp_path / "odd.pth")


@FORMATS
def test_a_file_cut_off_anywhere_is_one_line(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": dict(STATE), "meta": {"CLASSES": ("cat",)}}, path, _use_new_zipfile_serialization=zipped)
    content, cut = path.read_bytes(), tmp_path / "cut.pth"
    for length in range(5, len(content) - 1, max(1, len(content) // 60)):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pth: ") as error:
            read_weights(cut)
        assert "\n" not in str(error.value)


def test_a_script_archive_is_refused(tmp_path: Path) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.trace(Layer(), torch.zeros(1)).save(str(tmp_path / "script.pth"))
    with pytest.raises(ValueError, match=r"script\.pth: ") as error:
        create_model("faster_rcnn_r18_fpn", weights=tmp_path / "script.pth")
    assert "\n" not in str(error.value)
