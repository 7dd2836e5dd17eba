"""Small networks, a server in a thread, and a client without a browser."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import torch
from torch import nn

from torchdcn import models
from torchdcn.nn import DeformConv2dPack, DeformRoIPoolPack
from torchdcn.web.jobs import Jobs
from torchdcn.web.networks import Network
from torchdcn.web.server import Server, create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

explain_module = import_module("torchdcn.analysis.explain")  # torchdcn.analysis.explain is the function

SMALL: dict[str, Any] = {
    "fpn_channels": 32, "box_head_channels": 32, "mask_head_channels": (16,), "min_size": 64, "max_size": 96,
    "rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 6, "box_score_thresh": 0.05,
}  # fmt: skip


def make_network(
    name: str = "mask_rcnn_r18_fpn_mdconv_c3-c5", weights: str | None = "small", **settings: Any
) -> Network:
    """A small network whose offsets, and bins if it moves them, are not zero."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=3, **(SMALL | settings))
    model.class_names = ("cat", "dog", "<b>eel</b>")  # a name that must not become markup
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, DeformConv2dPack):
                for values, size in ((module.conv_offset.weight, 0.02), (module.conv_offset.bias, 0.7)):
                    values.copy_(size * torch.randn(values.shape, generator=generator))
            if isinstance(module, DeformRoIPoolPack):
                for child in module.children():
                    last = [layer for layer in child.modules() if isinstance(layer, nn.Linear)][-1]
                    last.bias.copy_(torch.randn(last.bias.shape, generator=generator))
    return Network(model.eval(), weights)


def noise(height: int = 80, width: int = 112, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture with something in it, ``[H, W, 3]``."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(60, 120, (height, width, 3), np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = (220, 90, 40)
    picture[height // 2 : -10, width // 2 : -10] = (30, 160, 200)
    return picture


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    networks: list[Network]
    jobs: Jobs

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(*networks: Network, host: str = "127.0.0.1") -> Iterator[Running]:
    listener = socket.create_server(("127.0.0.1", 0))
    jobs = Jobs()
    ready = threading.Event()
    server = Server(create_app(networks, jobs, host), jobs, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", list(networks), jobs)
    finally:
        server.stop()
        thread.join(10)
        assert jobs.close(10)
        assert not thread.is_alive()


def request(
    server: Running, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        given = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given.setdefault("content-type", "application/json")
        connection.request(method, path, body, given)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def upload(server: Running, content: bytes) -> str:
    """The picture's id."""
    status, _, body = request(server, "POST", "/api/pictures", content)
    assert status == 201, body
    return str(json.loads(body)["id"])


def events(body: bytes) -> list[tuple[str, Any]]:
    """Of an event stream."""
    found = []
    for event in body.decode().strip().split("\n\n"):
        kind, data = event.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def ask(server: Running, picture: str, what: str, **more: Any) -> Any:
    """The facts of an answer."""
    status, _, body = request(server, "POST", "/api/questions", {"picture": picture, "ask": what, **more})
    assert status == 200, body
    kind, facts = events(body)[-1]
    assert kind == "done", facts
    return facts


def bytes_of(server: Running, picture: str, key: str) -> bytes:
    """The bytes of an answer."""
    status, headers, body = request(server, "GET", f"/api/pictures/{picture}/bytes?{urlencode({'question': key})}")
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    return body


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
