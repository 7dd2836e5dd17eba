"""`torchrun` itself, as a user calls it: slow, since each of its processes imports everything."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    os.environ.get("TORCHDCN_SLOW_TESTS") != "1", reason="starts torchrun: TORCHDCN_SLOW_TESTS=1"
)

SETTINGS = ("--set", "fpn_channels=16", "--set", "box_head_channels=16", "--set", "mask_head_channels=[8]")


@pytest.fixture
def torchrun(scenes, tmp_path):
    """Starts `torchrun -m torchdcn train` with two processes; gives its process, and the run's folder."""
    started = []

    def start(name, *flags, hosts=1, more=()):
        out = tmp_path / name
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // hosts), *flags]
        command += ["-m", "torchdcn", "train", "--data", str(scenes), "--model", "mask_rcnn_r18_fpn_mdconv_c3-c5"]
        command += ["--out", str(out), "--epochs", "2", "--batch-size", "1", "--min-size", "64", "--workers", "1"]
        command += ["--log-every", "1", "--checkpoint-every", "1", *SETTINGS, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.extend(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(hosts)
        )
        return started[-hosts:], out

    yield start
    for process in started:
        process.terminate()
        process.communicate()


def wait_for_step(out, step):
    limit = time.monotonic() + 900
    while time.monotonic() < limit:
        record = out / "metrics.jsonl"
        if record.is_file() and f'"step": {step},' in record.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no step {step} in {out}")


def worker(agents, rank):
    """The process id of a rank, from what Linux tells of each process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent in {agent.pid for agent in agents} and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    return pytest.fail(f"no process of rank {rank}")


@pytest.fixture
def whole(torchrun):
    """The weights of a run that nothing has happened to."""
    [agent], out = torchrun("whole")
    assert agent.wait(900) == 0, agent.communicate()
    return load_file(out / "last.safetensors")


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_restart_goes_on_from_the_last_checkpoint_to_the_same_bits(torchrun, whole, hosts):
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29631") if hosts > 1 else ()
    agents, out = torchrun("run", "--nnodes", str(hosts), "--max-restarts", "2", *meeting, hosts=hosts)
    wait_for_step(out, 2)
    os.kill(worker(agents, 1), signal.SIGKILL)
    told = [agent.communicate(timeout=900) for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * hosts, told
    assert re.search(r"from step [1-5]", "".join(stdout for stdout, _ in told))
    assert "has lost the other processes" in "".join(stderr for _, stderr in told)
    weights = load_file(out / "last.safetensors")
    assert all(torch.equal(weights[key], whole[key]) for key in whole)


def test_sigterm_to_torchrun_saves_and_resumes_to_the_same_bits(torchrun, whole):
    [agent], out = torchrun("run")
    wait_for_step(out, 2)
    agent.terminate()
    _, stderr = agent.communicate(timeout=120)
    assert re.search(r"^Stopped at step [2345] of 6 and saved", stderr, re.MULTILINE), stderr
    [agent], out = torchrun("run", more=("--resume",))
    assert agent.wait(900) == 0, agent.communicate()
    weights = load_file(out / "last.safetensors")
    assert all(torch.equal(weights[key], whole[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 6]
