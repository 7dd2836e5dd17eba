"""The command as a process of its own: what it says, what it ends with, and how quickly."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., tuple[subprocess.Popen[str], int, str]]

VERB = ("serve",)
MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"
SMALL: dict[str, Any] = {"fpn_channels": 32, "box_head_channels": 32, "mask_head_channels": (16,), "min_size": 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=2, **SMALL)
    model.class_names = ("cat", "dog")
    path = tmp_path_factory.mktemp("weights") / "last.safetensors"
    save_weights(model, path)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; gives the process, its port, and the line that says it is ready."""
    processes = []

    def begin(*arguments: Any) -> tuple[subprocess.Popen[str], int, str]:
        command = [sys.executable, "-m", "torchdcn", "serve", "--port", "0", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, process.communicate(timeout=10)
        found = re.search(r"http://\S*:(\d+)", line)
        assert found
        return process, int(found[1]), line

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def get(port: int, path: str = "/api/about") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    return response.read()


def ends(process: subprocess.Popen[str], within: float) -> tuple[int, str]:
    """The exit code, and what was left to say on standard error."""
    began = time.monotonic()
    _, complaints = process.communicate(timeout=60)
    assert time.monotonic() - began < within
    return process.returncode, complaints


def test_it_says_where_it_is_and_ctrl_c_ends_it(start: Start, weights: Path) -> None:
    process, port, line = start("--model", MODEL, "--weights", weights)
    assert line == f"The page is at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    [network] = json.loads(get(port))["networks"]
    assert (network["name"], network["classes"]) == (MODEL, ["cat", "dog"])
    assert network["weights"] == "/".join(weights.parts[-2:])
    process.send_signal(signal.SIGINT)
    assert ends(process, 5) == (0, "")


def test_sigterm_ends_it_within_seconds_with_a_search_running_and_its_stream_open(start: Start, weights: Path) -> None:
    process, port, _ = start("--model", MODEL, "--weights", weights, "--min-size", 256)
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    idle.request("POST", "/api/example", b"")
    picture = json.loads(idle.getresponse().read())["id"]
    streams = []
    for row in range(2):  # one at work, one waiting
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        node = {"layer": "backbone.body.layer4", "y": row, "x": 0}
        question = {"picture": picture, "ask": "region", "node": node}
        stream.request("POST", "/api/questions", json.dumps(question), {"content-type": "application/json"})
        streams.append((stream, stream.getresponse()))
    while b'"total": 40' not in streams[0][1].readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert ends(process, 6) == (0, "")
    assert b"event: stopped" in streams[0][1].read()


def test_it_warns_once_of_random_weights_and_once_of_strangers(start: Start, weights: Path) -> None:
    given = ("--model", MODEL, "--min-size", 64, "--compare", f"{MODEL}:{weights}", "--host", "0.0.0.0")  # noqa: S104
    process, port, line = start(*given)
    assert f"http://0.0.0.0:{port}" in line
    networks = json.loads(get(port))["networks"]
    assert [network["name"] for network in networks] == [MODEL, MODEL]
    assert networks[0]["weights"] is None
    process.send_signal(signal.SIGTERM)
    code, complaints = ends(process, 5)
    assert code == 0
    first, second = complaints.splitlines()
    assert first == f"warning: {MODEL}: random weights, so what the page shows means nothing; give weights"
    assert second.startswith(f"warning: --host 0.0.0.0: whoever reaches this machine's port {port} can use the page")


# --- Bad input: one line, the right exit code. ----------------------------------------------------------------------


def test_a_port_in_use_is_one_line(run: Callable[..., tuple[int, str, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said, complaints = run("--model", MODEL, "--port", port)
    assert (code, said) == (1, "")
    expected = f"error: --port: can't listen at 127.0.0.1:{port} (Address already in use); choose another, 0 for any\n"
    assert complaints == expected


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "Missing option '--model'"),
        (("--model", MODEL, "--port", "70000"), 2, "--port"),
        (("--model", "mask_rcnn_r18_fnp"), 1, "did you mean 'mask_rcnn_r18_fpn'?"),
        (("--model", MODEL, "--weights", "/no/such.safetensors"), 1, "/no/such.safetensors"),
        (
            ("--model", MODEL, "--compare", "faster_rcnn_r18"),
            1,
            "--compare: there is no model 'faster_rcnn_r18'; did you mean",
        ),
        (("--model", MODEL, "--host", "no.such.host.invalid"), 1, "--host: 'no.such.host.invalid' is no address"),
        (("--model", MODEL, "--device", "tpu9"), 1, "--device: expected cpu, cuda or cuda:N, got 'tpu9'"),
    ],
)
def test_a_fault_is_one_line(
    run: Callable[..., tuple[int, str, str]], flags: tuple[str, ...], code: int, message: str
) -> None:
    given = ("--port", "0", *flags) if "--port" not in flags else flags
    got, said, complaints = run(*given)
    assert (got, said) == (code, "")
    assert complaints.count("\n") == 1
    assert complaints.startswith("error: ")
    assert message in complaints


def test_help_has_an_example(run: Callable[..., tuple[int, str, str]]) -> None:
    code, said, _ = run("--help")
    assert code == 0
    assert f"Example: torchdcn serve --model {MODEL}" in " ".join(said.split())


def test_without_the_extra_it_says_what_to_install(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "torchdcn.web.server", raising=False)
    got = run("--model", MODEL)
    assert got == (1, "", "error: serve needs fastapi: pip install fastapi pydantic uvicorn\n")
