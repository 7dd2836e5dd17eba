from __future__ import annotations

import hashlib
import io
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from torchdcn.weights import download as module
from torchdcn.weights.download import TransferError, download, has_hash

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
    assert server.requests == ["/a/b.pth"]
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


def test_another_file_is_refused_and_not_kept(server: Server, path: Path) -> None:
    message = rf"^the {len(CONTENT)} bytes that came are another file: their SHA-256 is not 00000000\.\.\.$"
    with pytest.raises(TransferError, match=message):
        download(server.url, path, "00000000")
    assert list(path.parent.iterdir()) == []


def test_a_truncated_file_is_refused_and_not_kept(server: Server, path: Path) -> None:
    server.send = [1000]
    with pytest.raises(TransferError, match=rf"^the server ended after 1000 of {len(CONTENT)} bytes$"):
        download(server.url, path, HASH)
    assert list(path.parent.iterdir()) == []
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(server: Server, path: Path) -> None:
    path.write_bytes(b"before")
    server.send = [1000]
    with pytest.raises(TransferError):
        download(server.url, path, HASH)
    assert path.read_bytes() == b"before"
    download(server.url, path, HASH)
    assert path.read_bytes() == CONTENT


def test_a_file_that_cannot_be_written_is_no_fault_of_the_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder") as error:
        download(server.url, tmp_path / "folder" / "weights.pth", HASH)
    assert not isinstance(error.value, TransferError)


def test_a_server_that_stalls_is_left(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.send, server.stall = [1000], True
    with pytest.raises(TransferError, match=r"^no data came for 0\.2 seconds$"):
        download(server.url, path, HASH)
    assert list(path.parent.iterdir()) == []


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
