"""Runs `torchdcn train` in processes forked from one that has imported everything, which takes longer than the runs.

Reads one job a line, as JSON: the arguments, how many processes, and whom to send which signal after which step (or
after how many seconds). Answers with the processes' exit codes and what they wrote.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed
import torch.utils.tensorboard
import torchvision

import torchdcn.cli
import torchdcn.detector
import torchdcn.evaluation
import torchdcn.models
from torchdcn.training import entry
from torchdcn.training.loop import TrainingLoop

LIMIT = 300  # seconds; nothing takes as long on the busiest machine, and a job that hangs must not hang the suite


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class DumpingLoop(TrainingLoop):
    """Leaves this process's weights beside the run."""

    def run(self):
        metrics = super().run()
        torch.save(self.state.model.state_dict(), f"{self.config.out}-rank{self.processes.rank}.pt")
        return metrics


def be_rank(rank, job, port):
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["size"], "MASTER_ADDR": "127.0.0.1"}
    if job["size"] > 1:
        os.environ |= {name: str(value) for name, value in (world | {"MASTER_PORT": port}).items()}
    os.environ |= job.get("environment", {})
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{job['logs']}/{stream}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    entry.TrainingLoop = DumpingLoop
    code = 1
    try:
        torchdcn.cli.main(job["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def due(job, began):
    if "after_seconds" in job:
        return time.monotonic() - began > job["after_seconds"]
    record = Path(job["arguments"][job["arguments"].index("--out") + 1]) / "metrics.jsonl"
    return record.is_file() and f'"step": {job["after_step"]},' in record.read_text()


def run(job):
    port, began = free_port(), time.monotonic()
    running = {}
    for rank in range(job["size"]):
        running[os.fork() or be_rank(rank, job, port)] = rank
    codes = {}
    victims = dict(job.get("signals", {}))
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            continue
        if victims and due(job, began):
            for pid, rank in running.items():
                if str(rank) in victims:
                    os.kill(pid, victims[str(rank)])
            victims = {}
        if time.monotonic() - began > LIMIT:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    written = [[Path(f"{job['logs']}/{s}{r}").read_text() for r in range(job["size"])] for s in ("out", "err")]
    return {"codes": [codes[rank] for rank in range(job["size"])], "out": written[0], "err": written[1]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert torchvision
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
