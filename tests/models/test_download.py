from __future__ import annotations

import hashlib
import io
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from torchdcn.models import download as module
from torchdcn.models.download import TransferError, download, has_hash

from .served import Server, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4000
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture(autouse=True)
def _without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with served(CONTENT) as it:
        yield it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def test_a_file_comes_whole_and_one_line_is_printed(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(f"{server.url}/a/b.pth", path, HASH)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.requests == [("/a/b.pth", None)]
    assert capsys.readouterr() == ("", f"downloading {server.url}/a/b.pth (1.0 MB)\n")


def test_a_terminal_sees_a_bar(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    download(f"{server.url}/b.pth", path, HASH)
    assert "downloading b.pth" in screen.getvalue()
    assert "1.0/1.0 MB" in screen.getvalue()


def test_a_length_that_is_not_told_is_not_needed(server: Server, path: Path) -> None:
    server.told = False
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT


def test_a_transfer_that_breaks_off_goes_on_where_it_was(server: Server, path: Path) -> None:
    server.send = [1000, 5000]
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_later_call_goes_on_where_an_interrupted_one_was(server: Server, path: Path) -> None:
    part = path.with_name("weights.pth.part")
    part.write_bytes(CONTENT[:4321])
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=4321-"]
    assert not part.exists()


def test_a_server_without_ranges_sends_it_anew(server: Server, path: Path) -> None:
    server.ranges, server.send = False, [1000]
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 7)])
def test_a_part_of_another_file_is_thrown_away(left: bytes, server: Server, path: Path) -> None:
    path.with_name("weights.pth.part").write_bytes(left)
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_complete_already_is_used(server: Server, path: Path) -> None:
    path.with_name("weights.pth.part").write_bytes(CONTENT)
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_another_file_is_refused_and_not_kept(server: Server, path: Path) -> None:
    message = rf"^the {len(CONTENT)} bytes that came are another file: their SHA-256 is not 00000000\.\.\.$"
    with pytest.raises(TransferError, match=message):
        download(server.url, path, "00000000")
    assert list(path.parent.iterdir()) == []


def test_a_truncated_file_is_refused_and_what_came_is_kept(server: Server, path: Path) -> None:
    server.send = [1000, 0]
    message = rf"^the server ended after 1000 of {len(CONTENT)} bytes; a next try goes on from there$"
    with pytest.raises(TransferError, match=message):
        download(server.url, path, HASH)
    assert [p.name for p in path.parent.iterdir()] == ["weights.pth.part"]
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT


def test_breaking_off_again_and_again_has_an_end(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    server.send = [1] * 10
    with pytest.raises(TransferError, match=rf"ended after 3 of {len(CONTENT)} bytes"):
        download(server.url, path, HASH)


def test_a_server_that_stalls_is_left(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.send, server.stall = [1000, 0], True
    with pytest.raises(TransferError, match=r"^no data came for 0\.2 seconds; a next try goes on from there$"):
        download(server.url, path, HASH)
    assert path.with_name("weights.pth.part").read_bytes() == CONTENT[:1000]


def test_a_server_that_never_answers_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(TransferError, match=r"^no data came for 0\.2 seconds$"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth", path, HASH)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_an_answer_that_is_none_is_told(status: int, message: str, server: Server, path: Path) -> None:
    server.status = status
    with pytest.raises(TransferError, match=f"^the server answered {message}$"):
        download(server.url, path, HASH)
    assert list(path.parent.iterdir()) == []


def test_no_server_and_no_network_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(TransferError, match=r"^connection refused$"):
        download(f"http://127.0.0.1:{port}/x.pth", path, HASH)

    def unknown(*_: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransferError, match=r"^temporary failure in name resolution$"):
        download("https://download.openmmlab.com/x.pth", path, HASH)


def test_what_is_no_http_is_told(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(TransferError) as error:
            download(f"http://127.0.0.1:{server.getsockname()[1]}/x.pth", path, HASH)
        assert "\n" not in str(error.value)
        thread.join()


def test_hashes_are_compared_at_their_beginning(tmp_path: Path) -> None:
    assert not has_hash(tmp_path / "none", HASH)
    (tmp_path / "it").write_bytes(CONTENT)
    assert has_hash(tmp_path / "it", HASH.upper())
    assert not has_hash(tmp_path / "it", "0" * 8)
