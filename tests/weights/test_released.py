"""``weights="coco"`` against a server on loopback, which has small weights under a name of ours."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import torch

from torchdcn.detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from torchdcn.interop import to_mmdet
from torchdcn.models import create_model
from torchdcn.weights import download as transfers
from torchdcn.weights import released
from torchdcn.weights.read import read_state_dict
from torchdcn.weights.released import MIRROR, PUBLISHED, released_weights
from torchdcn.weights.torchdcn_file import read_info

from .served import Server, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "faster_rcnn_r18_fpn_mdconv_c3-c5"
TINY = OrderedDict(
    {"neck.fpn_convs.0.conv.bias": torch.arange(3.0), "roi_head.bbox_head.fc_cls.bias": torch.arange(4.0)}
)


def checkpoint(state: dict[str, Any], meta: dict[str, Any] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "meta": {"epoch": 12} if meta is None else meta}, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that files come into."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Server]]:
    """Puts a file into the table of released weights and onto a mirror."""
    servers = []

    def make(content: bytes, digits: str | None = None) -> Server:
        digits = digits or hashlib.sha256(content).hexdigest()[:8]
        url = f"https://download.openmmlab.com/mmdetection/v2.0/dcn/small/small_1x_coco_20200130-{digits}.pth"
        monkeypatch.setitem(PUBLISHED, NAME, replace(next(iter(PUBLISHED.values())), weights_url=url))
        context = served(content)
        server = context.__enter__()
        servers.append(context)
        monkeypatch.setenv(MIRROR, server.url + "/")
        return server

    yield make
    for context in servers:
        context.__exit__(None, None, None)


def test_a_model_gets_the_released_weights_and_cocos_classes(publish: Any, cache: Path) -> None:
    torch.manual_seed(0)
    original = create_model(NAME, norm="frozen_bn", num_classes=80)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    content = checkpoint(to_mmdet(original), {"CLASSES": ("other",) * 80})
    server = publish(content)
    model = create_model(NAME, weights="coco")
    for key, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.settings.norm == "bn_eval"
    assert (model.class_names, model.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    stem = urlsplit(PUBLISHED[NAME].weights_url).path.rsplit("/", 1)[-1].removesuffix(".pth")
    assert server.requests == [f"/mmdetection/v2.0/dcn/small/{stem}.pth"]
    visible = sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))
    assert visible == [f"{stem}.pth", f"{stem}.safetensors"]
    info = read_info(cache / f"{stem}.safetensors")
    assert info is not None
    assert (info.model, info.num_classes, info.source) == (NAME, 80, f"{stem}.pth")
    assert create_model(NAME, weights="coco", num_classes=80).class_names == COCO_CLASS_NAMES
    assert len(server.requests) == 1  # the second time nothing is fetched


def test_the_file_is_fetched_and_converted_once(publish: Any, cache: Path) -> None:
    server = publish(checkpoint(TINY))
    path = released_weights(NAME)
    assert path.parent == cache
    assert read_state_dict(path)["roi_heads.box_predictor.cls_score.bias"].tolist() == [3, 0, 1, 2]
    written = path.stat().st_mtime_ns
    assert released_weights(NAME) == path
    assert path.stat().st_mtime_ns == written
    assert len(server.requests) == 1


def test_a_damaged_conversion_is_made_again_without_another_download(publish: Any) -> None:
    server = publish(checkpoint(TINY))
    path = released_weights(NAME)
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert released_weights(NAME).read_bytes() == whole
    assert len(server.requests) == 1


def test_an_original_that_was_put_there_by_hand_is_used(publish: Any, cache: Path) -> None:
    content = checkpoint(TINY)
    server = publish(content)
    cache.mkdir(parents=True)
    (cache / PUBLISHED[NAME].weights_url.rsplit("/", 1)[-1]).write_bytes(content)
    released_weights(NAME)
    assert server.requests == []


def test_an_original_that_was_damaged_is_fetched_again(publish: Any, cache: Path) -> None:
    content = checkpoint(TINY)
    server = publish(content)
    cache.mkdir(parents=True)
    original = cache / PUBLISHED[NAME].weights_url.rsplit("/", 1)[-1]
    original.write_bytes(content[:-1])
    released_weights(NAME)
    assert original.read_bytes() == content
    assert len(server.requests) == 1


def test_many_that_want_it_at_once_fetch_it_once(publish: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = publish(checkpoint(TINY | {"backbone.conv1.weight": torch.zeros(300_000)}))
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(released_weights(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(server.requests) == 1
    assert capsys.readouterr().err.count("downloading") == 1
    assert len(read_state_dict(paths[0])) == 3


def test_who_waits_for_another_process_is_told_why(
    publish: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    publish(checkpoint(TINY))
    cache.mkdir(parents=True)
    stem = PUBLISHED[NAME].weights_url.rsplit("/", 1)[-1].removesuffix(".pth")
    begun = threading.Event()

    def another() -> None:
        with FileLock(cache / f".{stem}.safetensors.lock"):
            begun.set()
            time.sleep(1.3)

    thread = threading.Thread(target=another)
    thread.start()
    begun.wait()
    released_weights(NAME)
    thread.join()
    assert "waiting for another process that fetches the same weights\n" in capsys.readouterr().err


def fail(match: str, cache: Path, what: str | None = None) -> None:
    """The error is one line with the way to do it by hand, and nothing has a final name."""
    what = what or PUBLISHED[NAME].weights_url
    with pytest.raises(OSError, match=match) as error:
        create_model(NAME, weights="coco")
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("weights: ")
    assert f"download {what} yourself and give the file's path, or put it into {cache}" in text
    assert [path.name for path in cache.iterdir() if path.suffix in (".pth", ".safetensors")] == []


def test_wrong_hash_truncation_404_and_stalling_are_one_line(
    publish: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "TIMEOUT", 0.2)
    content = checkpoint(TINY)
    publish(content, "00000000")
    fail(
        r"/mmdetection/v2\.0/dcn/.*00000000\.pth could not be fetched: the \d+ bytes that came are another file", cache
    )
    server = publish(content)
    server.send = [100]
    fail(r"the server ended after 100 of \d+ bytes", cache)
    server.send, server.stall = [100], True
    fail(r"no data came for 0\.2 seconds", cache)
    server.status = 404
    fail("the server answered 404 Not Found", cache)
    server.status = 200
    assert released_weights(NAME).is_file()


def test_no_server_is_one_line(publish: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(checkpoint(TINY))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{closed.getsockname()[1]}")
    fail(r"could not be fetched: connection refused; download", cache)


def test_without_a_mirror_the_published_address_is_asked(
    publish: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(checkpoint(TINY))
    monkeypatch.delenv(MIRROR)
    asked = []

    def offline(host: str, *_: Any) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    fail(
        r"weights: https://download\.openmmlab\.com/.*\.pth could not be fetched: name or service not known",
        cache,
        "it",
    )
    assert asked == ["download.openmmlab.com"]


def test_a_mirror_is_an_http_address(publish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(checkpoint(TINY))
    for wrong in ("mirror.example.org", "file:///etc", "http://"):
        monkeypatch.setenv(MIRROR, wrong)
        with pytest.raises(ValueError, match=f"^{MIRROR}: expected http://HOST or https://HOST, got {wrong!r}"):
            released_weights(NAME)


def test_a_model_without_released_weights_names_those_with() -> None:
    with pytest.raises(
        ValueError, match=r"no released weights \('coco'\) for faster_rcnn_r18_fpn; .*mask_rcnn_r50_fpn_md"
    ):
        create_model("faster_rcnn_r18_fpn", weights="coco")


def test_a_folder_that_cannot_be_used_is_one_line(publish: Any, tmp_path: Path) -> None:
    publish(checkpoint(TINY))
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(
        OSError, match=r"^weights: .*checkpoints can't be used \(.*\); set TORCH_HOME to another folder"
    ):
        released_weights(NAME)


def test_a_full_disk_leaves_nothing_under_a_final_name(
    publish: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(checkpoint(TINY))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(released, "write_weights", full)
    with pytest.raises(OSError, match=r"can't be used \(No space left on device\)"):
        released_weights(NAME)
    assert not list(cache.glob("*.safetensors"))


def test_every_published_file_is_named_after_its_hash_and_comes_over_https() -> None:
    assert len(PUBLISHED) == 5
    for published in PUBLISHED.values():
        parts = urlsplit(published.weights_url)
        assert (parts.scheme, parts.netloc) == ("https", "download.openmmlab.com")
        assert Path(parts.path).stem.endswith(f"-{published.sha256_prefix}")
        assert len(published.sha256_prefix) == 8
