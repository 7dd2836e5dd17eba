import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from torchdcn.data import make_synthetic
from torchdcn.training import TrainConfig
from torchdcn.training.record import Record

SMALL = {
    "fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 32,
    "rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20,
}  # fmt: skip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Six tiny scenes to train on and two to evaluate on."""
    return make_synthetic(tmp_path_factory.mktemp("scenes") / "coco", train=6, val=2, size=64, seed=0)


@pytest.fixture
def file_size_limit():
    """Within the block no file can grow beyond so many bytes: a write fails as it does on a full disk."""
    resource = pytest.importorskip("resource", reason="limits files by POSIX's setrlimit")

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def config(scenes, tmp_path):
    return TrainConfig(
        str(scenes), "mask_rcnn_r18_fpn", str(tmp_path / "run"), epochs=1, min_size=64, workers=0, log_every=1,
        overrides=SMALL,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _always_one_thread(one_thread):
    pass


@pytest.fixture
def at_step(monkeypatch):
    """Lets something happen right after a step, once."""

    def arrange(at, happen):
        advance, left = Record.advance, [happen]

        def advance_and_happen(self, epoch, step):
            advance(self, epoch, step)
            if step == at and left:
                left.pop()()

        monkeypatch.setattr(Record, "advance", advance_and_happen)

    return arrange


class Jobs:
    """Runs `torchdcn train` in other processes, one or many; see job_server.py."""

    def __init__(self, server, logs):
        self.server, self.logs = server, logs

    def __call__(self, data, out, size=1, *more, model="mask_rcnn_r18_fpn", resume=False, job=None, **flags):
        flags = {"data": data, "model": model, "out": out, "min-size": 64, "workers": 0, "log-every": 1, **flags}
        texts = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        settings = [text for name, value in SMALL.items() for text in ("--set", f"{name}={json.dumps(value)}")]
        arguments = ["train", *texts, *settings, *(["--resume"] if resume else []), *more]
        content = {"arguments": arguments, "size": size, "logs": str(self.logs), **(job or {})}
        self.server.stdin.write(json.dumps(content) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    command = [sys.executable, str(Path(__file__).with_name("job_server.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Jobs(server, tmp_path_factory.mktemp("logs"))
        server.terminate()  # closing its input is not enough: a loader's worker may have inherited this end too
