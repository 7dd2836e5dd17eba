from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from torchdcn.analysis import Node, effective_receptive_field, saliency_region, sampling_locations
from torchdcn.analysis.explain import picture_tensor
from torchdcn.analysis.objects import decode_mask
from torchdcn.plotting import encode_png
from torchdcn.plotting.support import heat_map
from torchdcn.web import server as web_server
from torchdcn.web.pictures import KEPT, MAX_BYTES

from .running import (
    Running,
    ask,
    bytes_of,
    events,
    explain_module,
    make_network,
    noise,
    request,
    running,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = {"layer": "backbone.body.layer4.1", "y": 1, "x": 2}


@pytest.fixture(scope="module")
def picture(one: Running) -> Iterator[str]:
    return upload(one, encode_png(noise()))


# --- Answers are what the analysis says. ----------------------------------------------------------------------------


def test_detections_are_the_detectors(one: Running) -> None:
    found = one.networks[0].detector(noise())
    answer = ask(one, upload(one, encode_png(noise())), "detections")["facts"]["detections"]
    assert len(answer) == len(found) > 0
    assert np.allclose([a["box"] for a in answer], found.boxes)
    assert [a["name"] for a in answer] == [found.class_names[label] for label in found.labels]
    assert found.masks is not None
    assert all(
        np.array_equal(decode_mask(a["segmentation"]), mask) for a, mask in zip(answer, found.masks, strict=True)
    )


def test_the_receptive_field_and_the_region_are_those_of_the_analysis(one: Running) -> None:
    picture = upload(one, encode_png(noise()))
    model, pixels, node = one.networks[0].model, picture_tensor(noise()), Node(**NODE)
    field = effective_receptive_field(model, pixels, node)
    answer = ask(one, picture, "field", node=NODE)
    assert answer["facts"]["response"] == pytest.approx(field.response, rel=1e-4)
    assert answer["facts"]["centre"] == field.centre.tolist()
    heat = np.frombuffer(bytes_of(one, picture, answer["bytes"]), np.uint8).reshape(80, 112)
    assert np.abs(heat - 255 * heat_map(field.map)).max() <= 1
    region = saliency_region(model, pixels, node, 0.3)
    answer = ask(one, picture, "region", node=NODE, error=0.3)["facts"]["region"]
    assert answer["area"] == pytest.approx(region.area, abs=0.02)
    assert answer["error"] <= answer["bound"] == 0.3
    assert decode_mask(answer["mask"]).mean() == pytest.approx(answer["area"])


def test_bins_are_those_of_the_analysis_also_where_they_move() -> None:
    network = make_network("faster_rcnn_r18_fpn_mdpool")
    roi = (20.0, 10.0, 90.0, 70.0)
    expected = sampling_locations(network.model, picture_tensor(noise()), Node(roi=roi))
    with running(network) as server:
        answer = ask(server, upload(server, encode_png(noise())), "bins", node={"roi": roi})["facts"]
    assert np.allclose(answer["points"], expected.points.numpy(), atol=1e-3)
    assert np.allclose(answer["weights"], expected.weights.numpy(), atol=1e-5)
    assert len(set(answer["weights"])) > 1
    assert not np.allclose(answer["points"], answer["regular"], atol=0.1)


def test_a_known_answer_is_given_again_without_work(one: Running, picture: str) -> None:
    body = {"picture": picture, "ask": "field", "node": NODE}
    first, second = (events(request(one, "POST", "/api/questions", body)[2]) for _ in range(2))
    assert first[-1] == second[-1]
    assert [kind for kind, _ in second] == ["done"]


def test_progress_is_told_pass_by_pass(one: Running) -> None:
    body = {"picture": upload(one, encode_png(noise())), "ask": "region", "node": NODE}
    told = events(request(one, "POST", "/api/questions", body)[2])
    steps = [facts["done"] for kind, facts in told if kind == "working"]
    assert told[-1][0] == "done"
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert {facts["total"] for kind, facts in told if kind == "working"} <= {0, 40}


# --- Stopping. ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(one: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the search of a region endless, but for its progress callback; tells what happens."""
    told: list[str] = []

    def endless(*_: Any, progress: Any, **__: Any) -> None:
        told.append("begun")
        step = 0
        while progress(step % 40, 40):
            step += 1
            time.sleep(0.005)
        told.append("stopped")
        one.jobs._jobs[0].check()

    monkeypatch.setattr(explain_module, "saliency_region", endless)
    return told


def begin(server: Running, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/api/questions", json.dumps(body), {"content-type": "application/json"})
    return connection


def test_a_client_that_goes_away_stops_its_search(one: Running, picture: str, slow: list[str]) -> None:
    connection = begin(one, {"picture": picture, "ask": "region", "node": NODE, "error": 0.5})
    stream = connection.getresponse()
    assert until(lambda: slow == ["begun"])
    assert b"event" in stream.readline()
    stream.close()
    connection.close()
    assert until(lambda: slow == ["begun", "stopped"], 5)
    assert ask(one, picture, "layers")["bytes"]  # and the queue is free


def test_jobs_wait_for_each_other_and_say_so(one: Running, picture: str, slow: list[str]) -> None:
    connections = [begin(one, {"picture": picture, "ask": "region", "node": NODE, "error": 0.5 + i}) for i in range(2)]
    try:
        assert until(lambda: slow == ["begun"])
        second = connections[1].getresponse()
        assert second.readline() == b"event: waiting\n"
        assert json.loads(second.readline().removeprefix(b"data: "))["ahead"] == 1
    finally:
        for connection in connections:
            connection.close()
    assert until(lambda: not one.jobs._jobs, 5)
    assert slow.count("begun") <= 2


def test_a_full_queue_says_when_to_come_again(one: Running, picture: str, slow: list[str]) -> None:
    connections = [
        begin(one, {"picture": picture, "ask": "region", "node": NODE, "error": 1 + i / 10}) for i in range(17)
    ]
    try:
        assert until(lambda: slow == ["begun"] and len(one.jobs._jobs) == 17)
        status, headers, body = request(
            one, "POST", "/api/questions", {"picture": picture, "ask": "field", "node": NODE | {"x": 1}}
        )
        assert (status, headers["retry-after"]) == (503, "5")
        assert "16 jobs are waiting" in json.loads(body)["error"]
    finally:
        for connection in connections:
            connection.close()
    assert until(lambda: not one.jobs._jobs, 10)


# --- What can't be answered. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "empty"),
        (b"GIF89a nonsense", 415, "image: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "expected one of"),
        (encode_png(noise())[:-200], 422, "damaged"),
        (b"\0" * (MAX_BYTES + 1), 413, "20 MB"),
    ],
    ids=["empty", "broken gif", "svg", "cut off", "too large"],
)
def test_a_bad_file_is_a_4xx_with_a_json_error(one: Running, content: bytes, status: int, message: str) -> None:
    got, headers, body = request(one, "POST", "/api/pictures", content)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert list(json.loads(body)) == ["error"]
    assert message in json.loads(body)["error"]


def test_a_body_without_a_length_is_measured_as_it_comes(one: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_BYTES", 1000)
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=20)
    connection.request("POST", "/api/pictures", (b"x" * 100 for _ in range(30)), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_picture_that_never_comes_is_given_up(one: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", one.port), timeout=10) as connection:
        connection.sendall(b"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nx")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"picture": "none"}, 404, "send it again"),
        ({"picture": "../../etc/passwd"}, 404, "not held"),
        ({"ask": "secrets"}, 422, "ask: "),
        ({"network": 7}, 422, "network: expected 0..0, got 7"),
        ({"node": None}, 422, "node: expected for field"),
        ({"node": {"layer": "backbone.body.layer5", "y": 0, "x": 0}}, 422, "did you mean 'backbone.body.layer4'"),
        ({"node": {"layer": "backbone.body.layer4", "y": -1, "x": 0}}, 422, "node.y: "),
        ({"node": {"roi": [9, 9, 3, 3]}}, 422, "x2 > x1"),
        ({"node": {"roi": [1, 1, 3, 3], **NODE}}, 422, "both"),
        ({"point": [1]}, 422, "point"),
        ({"more": 1}, 422, "more: "),
        ({"error": -1}, 422, "error: "),
    ],
)
def test_a_bad_question_is_a_4xx_with_a_json_error(
    one: Running, picture: str, change: dict[str, Any], status: int, message: str
) -> None:
    question = {"picture": picture, "ask": "field", "node": NODE} | change
    got, headers, body = request(one, "POST", "/api/questions", question)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert message in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": NODE | {"y": 999}}, "expected y in 0.."),
        ({"node": {"roi": [900, 900, 990, 990]}}, "outside of the image"),
    ],
)
def test_what_only_the_network_knows_to_be_wrong_ends_the_stream(
    one: Running, picture: str, change: dict[str, Any], message: str
) -> None:
    body = request(one, "POST", "/api/questions", {"picture": picture, "ask": "field", "node": NODE} | change)[2]
    kind, facts = events(body)[-1]
    assert kind == "failed"
    assert message in facts["error"]


@pytest.mark.parametrize("path", [
    "/nothing", "/page/server.py", "/page/../server.py", "/page/%2e%2e%2fserver.py", "/page//etc/passwd", "/etc/passwd",
    "/docs", "/openapi.json", "/api/pictures/..%2f..%2fetc%2fpasswd.png", "/api/pictures/x/bytes?question=y",
])  # fmt: skip
def test_no_other_file_is_served(one: Running, path: str) -> None:
    status, headers, body = request(one, "GET", path)
    assert (status, headers["content-type"]) == (404, "application/json")
    assert list(json.loads(body)) == ["error"]


def test_only_the_newest_pictures_are_held() -> None:
    with running(make_network()) as server:
        ids = [upload(server, encode_png(noise(16, 16, seed))) for seed in range(KEPT + 1)]
        held = [request(server, "GET", f"/api/pictures/{id}.png")[0] for id in ids]
    assert held == [404] + [200] * KEPT


def test_the_picture_comes_back_as_the_network_sees_it(one: Running, picture: str) -> None:
    status, headers, body = request(one, "GET", f"/api/pictures/{picture}.png")
    assert (status, headers["content-type"], body) == (200, "image/png", encode_png(noise()))


def test_stopping_ends_jobs_and_streams_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(*_: Any, progress: Any, **__: Any) -> None:
        begun.set()
        while progress(1, 40):
            time.sleep(0.005)
        raise ValueError("told to stop")

    monkeypatch.setattr(explain_module, "saliency_region", endless)
    with running(make_network()) as server:
        body = {"picture": upload(server, encode_png(noise())), "ask": "region", "node": NODE}
        stream = begin(server, body).getresponse()
        assert begun.wait(10)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert stream.read().decode().count("event: ") >= 1
