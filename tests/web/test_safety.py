from __future__ import annotations

import json

import pytest

from torchdcn.plotting import encode_png
from torchdcn.web.safety import host_of, is_loopback

from .running import Running, make_network, noise, request, running


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LocalHost", "localhost"),
        ("[::1]:80", "::1"),
        ("evil.example:8000", "evil.example"),
    ],
)
def test_a_host_header_is_read(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),  # noqa: S104
     ("192.168.1.9", False), ("box.local", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "10.0.0.7"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/api/about"), ("POST", "/api/pictures")])
def test_another_name_for_this_server_is_refused(one: Running, host: str, method: str, path: str) -> None:
    """DNS rebinding: another site's name that leads here."""
    status, _, body = request(one, method, path, b"x" if method == "POST" else None, {"Host": host})
    assert status == 403
    assert "is not this server's name" in json.loads(body)["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:1234", "localhost:8000", "[::1]:8000", "LOCALHOST"])
def test_this_machines_names_are_fine_behind_any_port(one: Running, host: str) -> None:
    assert request(one, "GET", "/api/about", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/api/pictures", "/api/questions", "/api/example"])
def test_posts_of_other_sites_are_refused(one: Running, headers: dict[str, str], path: str) -> None:
    status, _, body = request(one, "POST", path, b"x", headers)
    assert status == 403
    assert json.loads(body)["error"] == "origin: requests from other sites are refused"


def test_the_pages_own_posts_are_taken(one: Running) -> None:
    headers = {"Origin": one.url, "Sec-Fetch-Site": "same-origin"}
    assert request(one, "POST", "/api/pictures", encode_png(noise()), headers)[0] == 201


def test_a_form_cannot_ask_questions(one: Running) -> None:
    """A form of another site can post text, but not JSON, without being asked first."""
    body = json.dumps({"picture": "x", "ask": "layers"}).encode()
    status, _, _ = request(one, "POST", "/api/questions", body, {"content-type": "text/plain"})
    assert 400 <= status < 500


def test_a_long_question_is_refused_before_it_is_read(one: Running) -> None:
    status, _, body = request(one, "POST", "/api/questions", b"{" * 70_000)
    assert status == 413
    assert "65536 bytes" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/api/about", "/nothing"])
def test_every_answer_forbids_what_the_page_does_not_need(one: Running, path: str) -> None:
    _, headers, _ = request(one, "GET", path)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_a_server_for_others_answers_to_numbers_but_not_to_foreign_names() -> None:
    with running(make_network(), host="0.0.0.0") as server:  # noqa: S104  # its socket is on loopback all the same
        assert request(server, "GET", "/", headers={"Host": "192.168.1.9:8000"})[0] == 200
        assert request(server, "GET", "/", headers={"Host": "evil.example"})[0] == 403
