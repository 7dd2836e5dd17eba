"""Many processes: forked ones that meet by gloo, as torchrun would start them."""

import json
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from torchdcn.models import create_model
from torchdcn.training import RemoteError, distributed, read_record
from torchdcn.training.distributed import Processes, is_restart_of, job_id, world_size

SMALL = {"fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 32}
FROZEN = ("--set", "trainable_backbone_layers=0")  # quicker, where it doesn't matter what is learned
MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"


def copies_of_one(scenes, root, count=6):
    """So many times the same picture to train on: whatever the share, each image has as many samples as the others."""
    shutil.copytree(scenes, root)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:count]
    first = content["images"][0]
    objects = [each for each in content["annotations"] if each["image_id"] == first["id"]]
    content["annotations"] = [
        each | {"id": 100 * image["id"] + each["id"], "image_id": image["id"]}
        for image in content["images"]
        for each in objects
    ]
    content["images"] = [image | {"file_name": first["file_name"]} for image in content["images"]]
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def copies(scenes, tmp_path_factory):
    return copies_of_one(scenes, tmp_path_factory.mktemp("copies") / "coco")


@pytest.fixture(scope="module")
def two(jobs, copies, tmp_path_factory):
    """A whole run of two processes, and where it is."""
    out = tmp_path_factory.mktemp("two") / "run"
    return jobs(copies, out, 2, model=MODEL, epochs=1, batch_size=1, flip=0), out


def losses(out):
    return [
        [value for name, value in line.items() if name.startswith("loss")]
        for line in read_record(out / "metrics.jsonl")
        if line["kind"] == "train"
    ]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_are_one_of_the_same_batch(jobs, copies, two, tmp_path):
    run, out = two
    assert run["codes"] == [0, 0], run
    alone = jobs(copies, tmp_path / "alone", model=MODEL, epochs=1, batch_size=2, flip=0)
    assert alone["codes"] == [0], alone
    assert len(losses(out)) == 3
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(tmp_path / "alone")), atol=1e-4, rtol=0)
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (out, tmp_path / "alone"))
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < 1e-3


def test_all_processes_hold_the_same_bits(two):
    _, out = two
    ranks = [torch.load(f"{out}-rank{rank}.pt") for rank in (0, 1)]
    assert same(*ranks)
    assert same(ranks[0], load_file(out / "last.safetensors"))


def test_only_the_first_process_talks_and_writes(two):
    run, out = two
    assert "batch size: 1 in each of 2 processes" in run["out"][0]
    assert "AP50" in run["out"][0]
    assert run["out"][1] == ""
    assert run["err"] == ["", ""]
    assert len(list(out.glob("events.out.tfevents.*"))) == 1
    assert len(read_record(out / "metrics.jsonl")) == 4


def test_a_stopped_job_resumes_to_the_same_bits(jobs, copies, two, tmp_path):
    flags = {"model": MODEL, "epochs": 1, "batch_size": 1, "flip": 0}
    out = tmp_path / "run"
    # One of them is enough: between two steps all ask all.
    stopped = jobs(copies, out, 2, **flags, job={"signals": {"1": signal.SIGTERM}, "after_step": 1})
    assert stopped["codes"] == [128 + signal.SIGTERM] * 2, stopped
    assert re.search(r"Stopped at step [12] of 3 and saved; .*--resume", stopped["err"][0])
    assert stopped["err"][1] == ""
    again = jobs(copies, out, 2, **flags, resume=True)
    assert again["codes"] == [0, 0], again
    assert same(load_file(out / "last.safetensors"), load_file(two[1] / "last.safetensors"))
    assert [line["step"] for line in read_record(out / "metrics.jsonl")] == [1, 2, 3, 3]


@pytest.mark.parametrize("hit", [(0, 1), (1,)], ids=["both", "the second"])
def test_a_stop_during_an_evaluation_is_everyones(jobs, scenes, tmp_path, hit):
    flags = {"epochs": 2, "batch_size": 1, "eval_every": 1}
    stop = {"after_step": 3, "signals": {str(rank): signal.SIGTERM for rank in hit}}  # the first epoch's last step
    run = jobs(scenes, tmp_path / "run", 2, *FROZEN, job=stop, **flags)
    assert run["codes"] == [128 + signal.SIGTERM] * 2, run
    assert "".join(run["err"]).count("Stopped at step") == 1
    again = jobs(scenes, tmp_path / "run", 2, *FROZEN, resume=True, **flags)
    assert again["codes"] == [0, 0], again
    lines = read_record(tmp_path / "run" / "metrics.jsonl")
    assert [line["epoch"] for line in lines if line["kind"] == "val"] == [1, 2]


def test_the_number_of_processes_may_change_if_the_whole_batch_does_not(jobs, two, copies, tmp_path):
    out = shutil.copytree(two[1], tmp_path / "run")
    flags = {"model": MODEL, "epochs": 2, "flip": 0}
    refused = jobs(copies, out, 1, resume=True, batch_size=1, **flags)
    assert refused["codes"] == [1]
    assert "was trained with 2 processes of 1 images a step, got 1 of 1" in refused["err"][0]
    assert jobs(copies, out, 1, resume=True, batch_size=2, **flags)["codes"] == [0]
    assert [line["step"] for line in read_record(out / "metrics.jsonl") if line["kind"] == "train"][-3:] == [4, 5, 6]


def test_a_process_that_dies_ends_the_others_with_a_message(jobs, scenes, tmp_path):
    kill = {"signals": {"1": signal.SIGKILL}, "after_step": 1}
    died = jobs(scenes, tmp_path / "run", 2, *FROZEN, epochs=9, batch_size=1, checkpoint_every=1, job=kill)
    assert died["codes"] == [1, -signal.SIGKILL], died
    assert re.search(r"^error: rank 0 on \S+ has lost the other processes \(.*--resume", died["err"][0], re.MULTILINE)
    assert "Traceback" not in died["err"][0]


def test_an_image_that_one_process_cannot_read_is_told_once(jobs, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000003.jpg").write_bytes(b"not a picture")
    run = jobs(data, tmp_path / "run", 2, *FROZEN, epochs=1, batch_size=1)
    assert run["codes"] == [1, 1], run
    assert "".join(run["err"]).count("error: ") == 1
    assert "000003.jpg" in "".join(run["err"])
    assert not (tmp_path / "run").exists()


def test_a_process_without_an_image_of_its_own_weighs_nothing(jobs, scenes, tmp_path):
    """Six images, five of which are in the first batch and one unreadable: the second batch is nobody's."""
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000003.jpg").write_bytes(b"not a picture")
    run = jobs(data, tmp_path / "run", 2, "--skip-bad-images", *FROZEN, epochs=1, batch_size=2)
    assert run["codes"] == [0, 0], run
    assert run["out"][0].count("skipped: ") == 1
    assert "Images skipped, 1 in all:" in run["out"][0]
    alone = jobs(data, tmp_path / "alone", 1, "--skip-bad-images", *FROZEN, epochs=1, batch_size=4)
    assert alone["codes"] == [0], alone
    ours, theirs = (torch.tensor(losses(tmp_path / name)) for name in ("run", "alone"))
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0)  # here the images have not all as many regions


def test_the_gradient_weighs_images_alike_whoever_has_them(jobs, scenes, tmp_path):
    """Of five images two processes have two each, and then one of them the fifth. SGD shows a gradient's size."""
    data = copies_of_one(scenes, tmp_path / "five", count=5)
    flags = ("--recipe", "1x", "--lr-batch", "0", "--warmup", "0", "--lr-drops", "", "--clip", "1")
    for name, size in (("run", 2), ("alone", 1)):
        run = jobs(data, tmp_path / name, size, *flags, epochs=1, batch_size=4 // size, flip=0, lr=0.02)
        assert run["codes"] == [0] * size, run
    two, one = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "alone"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", [MODEL, "mask_rcnn_r18_fpn_mdpool", "faster_rcnn_r18_fpn"])
@pytest.mark.parametrize("mimic", [False, True], ids=["plain", "mimic"])
def test_a_picture_without_objects_gives_every_parameter_a_gradient(name, mimic):
    """Else the processes would wait for each other's gradients, or search the graph for those that are missing."""
    overrides = {key: value for key, value in SMALL.items() if name.startswith("mask") or "mask" not in key}
    model = create_model(name, num_classes=2, min_size=64, mimic=mimic, **overrides)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 64, 64)}
    sum(model([torch.zeros(3, 64, 64)], [empty]).values()).backward()
    assert [
        key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ] == []


def test_bad_input_is_told_once(jobs, tmp_path):
    run = jobs("/nowhere", tmp_path / "run", 2)
    assert run["codes"] == [1, 1], run
    assert "".join(run["err"]).strip() == "error: --data: /nowhere: there is no such folder"
    usage = jobs("/nowhere", tmp_path / "run", 2, epochs=0)
    assert usage["codes"] == [2, 2]
    assert "".join(usage["err"]).count("error: ") == 1


def test_torchruns_restart_resumes_its_own_job_only(jobs, scenes, tmp_path):
    flags = {"epochs": 1, "batch_size": 6}
    first = {"environment": {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}}
    assert jobs(scenes, tmp_path / "run", 1, *FROZEN, **flags, job=first)["codes"] == [0]
    again = {"environment": {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1"}}
    assert "from step 1" in jobs(scenes, tmp_path / "run", 1, *FROZEN, **flags, job=again)["out"][0]
    other = {"environment": {"TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_RESTART_COUNT": "1"}}
    assert "was moved to" in jobs(scenes, tmp_path / "run", 1, *FROZEN, **flags, job=other)["out"][0]


def test_shares_do_not_overlap_and_leave_nothing_out():
    shares = [Processes(rank, 3).shard(range(8)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_one_wrong_bit_in_the_weights_is_noticed(monkeypatch):
    layers = [torch.nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    told = []
    for layer in layers:
        monkeypatch.setattr(Processes, "all_gather", lambda _, sums: told.append(sums) or told)
        Processes(size=2).check_same_weights(layer)
    layers[1].weight.data.view(torch.int32)[0, 0] ^= 1
    for rank, error in enumerate((ValueError, RemoteError)):
        with pytest.raises(error, match="rank 0 and 2 hold different weights"):
            Processes(rank, 2).check_same_weights(layers[1])
        told.pop()


def test_one_process_alone_needs_no_group():
    alone = Processes()
    assert (alone.all_reduce([1, 2.5]), alone.all_gather("a"), alone.gather(3), alone.broadcast_from_first(4)) == (
        [1, 2.5],
        ["a"],
        [3],
        4,
    )
    alone.raise_on_all(None)
    with pytest.raises(KeyError):
        alone.raise_on_all(KeyError("b"))
    with pytest.raises(OSError, match="c"), alone.raise_together():
        raise OSError("c")


def test_what_torchrun_tells(monkeypatch):
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (world_size(), job_id(), is_restart_of(None)) == (1, None, False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    first = job_id()
    assert world_size() == 8
    assert not is_restart_of(first)  # another run of the same name, as far as one can know
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert is_restart_of(first)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    assert not is_restart_of(first)


def test_a_restart_that_only_other_hosts_count_is_known_by_the_jobs_token(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "name")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr(distributed, "_job_token", ["token"])
    assert is_restart_of(job_id())
    assert not is_restart_of(["name", "another token"])


def test_processes_started_anew_do_not_take_the_dead_for_their_own():
    """torchrun's store outlives the processes: what the dead ones asked and heard is still there."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet(rank):
        store = torch.distributed.TCPStore("127.0.0.1", server.port, is_master=False)
        return distributed._agree_on_prefix(store, rank, 3)

    names = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            server.set("torchdcn/ask/1", "of one that died before it was answered")
            found = set(pool.map(meet, (2, 1, 0)))
            assert len(found) == 1
            names += found
    assert len(set(names)) == 3
