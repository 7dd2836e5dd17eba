import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchdcn.files import exclusive_lock, remove_leftovers, write_atomically


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("older")

    def half(file):
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_and_its_name_are_on_disk_before_it_is_done(tmp_path, monkeypatch):
    handles, synced = Path("/proc/self/fd"), []
    fsync = os.fsync

    def note(handle):
        synced.append((handles / str(handle)).readlink())
        fsync(handle)

    if not handles.is_dir():
        pytest.skip("asks Linux what a handle is of")
    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "file.txt", lambda file: file.write_text("new"))
    assert synced[0].parent.name.startswith(".file.txt.")
    assert synced[1] == tmp_path


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_older_file_keeps_its_content_under_another_name(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*paths):  # noqa: ARG001  # os.link's signature
            raise OSError("not supported")

        monkeypatch.setattr(os, "link", refuse)
    for number in range(3):
        write_atomically(
            tmp_path / "file.txt", lambda file, n=number: file.write_text(str(n)), keep=tmp_path / "older.txt"
        )
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "2", "older.txt": "1"}


def test_a_death_between_the_two_renames_does_no_harm(tmp_path):
    path, older = tmp_path / "file.txt", tmp_path / "older.txt"
    path.write_text("1")
    older.hardlink_to(path)  # the second name was given, the new file had not come yet
    write_atomically(path, lambda file: file.write_text("2"), keep=older)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "2", "older.txt": "1"}


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (".file.txt.abc.txt", ".file.txt.link", "file.txt", ".other.txt.abc.txt"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "file.txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.txt.abc.txt", "file.txt"]


WRITES_FOREVER = """
import sys, torch
from pathlib import Path
from torchdcn.weights.torchdcn_file import WeightsInfo, write_weights
info = WeightsInfo("faster_rcnn_r18_fpn", 1, {}, None, None, None)
while True:
    write_weights({"weight": torch.zeros(50_000_000)}, info, Path(sys.argv[1]))
"""


def test_leftovers_of_a_process_killed_while_it_wrote_weights_are_removed(tmp_path):
    path = tmp_path / "last.safetensors"
    writer = subprocess.Popen([sys.executable, "-c", WRITES_FOREVER, str(path)])
    while writer.poll() is None and not list(tmp_path.glob(".*")):
        time.sleep(0.001)
    time.sleep(0.03)  # by now safetensors is writing to a file of its own naming; 200 MB take longer than that
    writer.kill()
    assert writer.wait() < 0
    remove_leftovers(path)
    assert not list(tmp_path.glob(".*"))


HOLD = """
import sys, time
from torchdcn.files import exclusive_lock
with exclusive_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """Holds a lock in another process for some seconds; gives its path."""
    processes = []

    def start(seconds):
        path = tmp_path / "lock"
        command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return path

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_lock_that_another_process_holds_is_refused_after_the_time_to_wait(hold):
    with pytest.raises(TimeoutError, match="lock is locked by another process"), exclusive_lock(hold(60), timeout=0):
        pytest.fail("two processes hold the lock")


def test_whoever_waits_for_a_lock_is_told_and_gets_it(hold, capsys):
    path = hold(3)
    with exclusive_lock(path, notice="waiting for another process"):
        pass
    assert capsys.readouterr().err == "waiting for another process\n"
    with exclusive_lock(path, timeout=0, notice="waiting"):  # it is free again, so that there is nothing to tell
        pass
    assert capsys.readouterr().err == ""


def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(tmp_path, monkeypatch):
    def refuse(self, timeout):
        raise NotImplementedError("no flock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OSError, match="no flock") as caught, exclusive_lock(tmp_path / "lock"):
        pytest.fail("the lock is held")
    assert not isinstance(caught.value, TimeoutError)
