import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchdcn.bench.contenders import Shape
from torchdcn.bench.memory import can_measure

VERB = ("bench",)
TINY = ["--shape", "8x5x6", "--rounds", "1"]


def rows(out):
    """The numbers of every row, by its label."""
    cells = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    return {label: figures for label, *figures in cells if figures}


def test_help_lists_the_benchmarks_and_shows_an_example(run):
    for arguments in ([], ["--help"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "ops" in out
    code, out, _ = run("ops", "--help")
    assert code == 0
    assert "Example: torchdcn bench ops" in " ".join(out.split())


def test_prints_every_contender_beside_dense_and_how_to_do_it_again(run):
    pytest.importorskip("onnxruntime")
    code, out, err = run("ops", *TINY, "--shape", "4x6x7", "--threads", 1, "--no-memory")
    assert (code, err) == (0, "")
    found = rows(out)
    for name in ("dense, contiguous", "dense, channels-last", "torchdcn, contiguous", "torchdcn, channels-last"):
        assert len(found[name]) == 2  # the geometric mean, which comes last: forward, forward and backward
        assert out.count(f"  {name} ") == 3
    assert found["onnxruntime"][1] == "-"  # it has no backward
    assert re.search(r"dense, \S+ +\S+ +1\.00 ", out)
    assert "8 @ 5x6" in out
    assert found["torch"] == [torch.__version__]
    assert found["again with"] == ["torchdcn bench ops --shape 8x5x6 --shape 4x6x7 --threads 1 --rounds 1 --no-memory"]
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_memory_has_a_column(run):
    code, out, _ = run("ops", *TINY, "--threads", 1, "--no-peers", "--forward-only")
    assert code == 0
    assert re.search(r"torchdcn, contiguous .* \d\.\d MB", out)


def test_the_same_command_line_comes_back(run):
    flags = "--shape 8x5x6 --batch 2 --kernel 5x3 --stride 2 --groups 2 --deform-groups 4 --dtype float64"
    flags += " --threads 1 --rounds 1 --no-peers --no-memory --forward-only"
    code, out, _ = run("ops", *flags.split())
    assert code == 0
    assert shlex.split(rows(out)["again with"][0])[3:] == flags.split()
    assert "2 x 8 @ 5x6, 5x3, stride 2, 2 groups, 4 deform groups" in out


def test_json_holds_all_figures(run, tmp_path):
    path = tmp_path / "new" / "figures.json"
    code, _, _ = run("ops", *TINY, "--no-memory", "--threads", 1, "--json", path)
    assert code == 0
    record = json.loads(path.read_text())
    assert record["command"].startswith("torchdcn bench ops --shape 8x5x6")
    assert record["machine"]["torch"] == torch.__version__
    assert [m["pass"] for m in record["measurements"]] == ["forward", "forward + backward"]
    ours = record["measurements"][0]["contenders"]["torchdcn, channels-last"]
    assert ours["milliseconds"] == ours["milliseconds_by_round"][0] > 0
    assert ours["x_dense"] == pytest.approx(record["geometric_mean_x_dense"]["forward"]["torchdcn, channels-last"])
    assert list(path.parent.iterdir()) == [path]


def test_sixteen_bits_say_which_peers_are_missing_and_why(run):
    code, out, _ = run("ops", *TINY, "--dtype", "bfloat16", "--no-memory", "--forward-only")
    assert code == 0
    assert "torchdcn in float32, channels-last" in out
    assert "no torchvision: it has no kernel for bfloat16 on cpu" in out


def test_suite_of_shapes_has_a_row_for_each(run, monkeypatch):
    shapes = (Shape(6, 5, 6, groups=2), Shape(8, 5, 6, kernel=(1, 1)))
    monkeypatch.setattr("torchdcn.bench.contenders.VARIED", shapes)
    code, out, _ = run("ops", "--suite", "shapes", "--rounds", 1)
    assert code == 0
    assert all(len(rows(out)[f"{shape}"]) == 8 for shape in shapes)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_scaling_counts_threads_from_one(run):
    code, out, _ = run("ops", "--suite", "scaling", *TINY)
    assert code == 0
    threads = re.findall(r" (\d+)(?: +[\d.]+){8} *$", out, re.MULTILINE)
    assert threads == ["1", "2", "3"]
    assert rows(out)["again with"][0].endswith("--threads 1 --threads 2 --threads 3 --rounds 1")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "256x50"], "--shape: expected CxHxW such as 256x50x84, got '256x50'"),
        (["--shape", "0x5x5"], "--shape: expected CxHxW such as 256x50x84, got '0x5x5'"),
        (["--kernel", "3x"], "--kernel: expected a number such as 3 or two such as 5x3, got '3x'"),
        (["--stride", "0"], "--stride: expected at least 1, got (0, 0)"),
        (["--shape", "8x5x6", "--groups", "3"], "--groups: expected a divisor of the 8 channels, got 3"),
        (["--dtype", "bfloat"], "--dtype: expected one of float32, bfloat16, float16, float64, got 'bfloat'; did"),
        (["--suite", "shape"], "--suite: expected one of resnet50, shapes, scaling, got 'shape'; did you mean shapes?"),
        (["--suite", "shapes", "--kernel", "3"], "--kernel: --suite shapes brings its own; leave one of the two out"),
        (["--suite", "scaling", "--batch", "3"], "--batch: --suite scaling brings its own"),
        (["--threads", "1", "--threads", "2"], "--threads: several numbers go with --suite scaling, got 1, 2"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_bad_usage_is_one_line(run, flags, message):
    code, out, err = run("ops", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_what_can_not_be_used_here_is_said_before_anything_runs(run, tmp_path):
    code, _, err = run("ops", "--device", "cuda:99")
    assert (code, err.count("\n")) == (1, 1)
    assert "--device: 'cuda:99' can't be used here" in err
    code, _, err = run("ops", "--json", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "json: " in err


def test_the_script_of_make_bench_is_the_same_command():
    script = Path(__file__).parents[2] / "benchmarks" / "ops.py"
    flags = ["--no-peers", "--rounds", "1", "--threads", "1", "--shape", "8x5x6", "--no-memory"]
    done = subprocess.run(
        [sys.executable, script, *flags],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "torchdcn bench ops --shape 8x5x6" in done.stdout
