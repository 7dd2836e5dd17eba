"""One click gives one answer: the command and the page's server agree on the object, the places, and the numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from torchdcn import analysis
from torchdcn.analysis.explain import picture_tensor
from torchdcn.analysis.objects import decode_mask
from torchdcn.cli import main
from torchdcn.cli.serve import _networks
from torchdcn.models.weights import save_weights
from torchdcn.plotting.support import heat_map

from .running import ask, bytes_of, make_network, noise, running, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .running import Running

DEFORMABLE, REGULAR = "mask_rcnn_r18_fpn_mdconv_c3-c5", "mask_rcnn_r18_fpn"
LAYER = "backbone.body.layer4.1"  # the block of the layer that the page chooses first

pytestmark = pytest.mark.usefixtures("short_search")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two networks that are surer of what they detect than random ones."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for name in (DEFORMABLE, REGULAR):
        model = make_network(name).model
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias[:3] += torch.tensor([1.0, 1.2, 0.0])
            model.roi_heads.mask_predictor.mask_fcn_logits.bias += 0.1
        files[name] = folder / f"{name}.safetensors"
        save_weights(model, files[name])
    return files


@pytest.fixture(scope="module")
def server(weights: dict[str, Path]) -> Iterator[Running]:
    with running(*_networks([(name, str(file)) for name, file in weights.items()], None, "cpu")) as server:
        yield server


@pytest.fixture
def command(
    weights: dict[str, Path], png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[dict[str, Any]], list[analysis.Explanation]]]:
    """Runs ``torchdcn explain`` for both networks; what it writes of each, and what it found."""

    def run(*place: str) -> tuple[list[dict[str, Any]], list[analysis.Explanation]]:
        found = []

        def explain(*given: Any, **named: Any) -> analysis.Explanation:
            found.append(analysis_explain(*given, **named))
            return found[-1]

        analysis_explain = analysis.explain
        monkeypatch.setattr(analysis, "explain", explain)
        given = [str(png), "--model", DEFORMABLE, "--weights", str(weights[DEFORMABLE]), "--device", "cpu"]
        given += ["--compare", f"{REGULAR}:{weights[REGULAR]}", *place, "--out", str(tmp_path / "why")]
        with pytest.raises(SystemExit) as ended:
            main(["explain", *given])
        assert ended.value.code == 0
        return json.loads((tmp_path / "why" / "explain.json").read_text())["networks"], found

    return run


def check_answers(
    server: Running, picture: str, index: int, question: dict[str, Any], wrote: dict[str, Any], found: Any
) -> None:
    """Each part of the page's answer is the same as the command's."""
    for kind in ("field", "region"):
        answer = ask(server, picture, kind, network=index, **question)
        facts = answer["facts"]
        assert facts["summaries"] == {kind: wrote["summaries"][kind]}
        assert {key: value for key, value in facts.items() if key != "summaries"} == {
            key: wrote[key] for key in facts if key != "summaries"
        }
        if kind == "field":
            heat = np.frombuffer(bytes_of(server, picture, answer["bytes"]), np.uint8).reshape(80, 112)
            assert np.array_equal(heat, np.rint(255 * heat_map(found.field.map)))
        else:
            assert np.array_equal(decode_mask(facts["region"]["mask"]), found.region.mask)


def points_of(server: Running, picture: str, index: int) -> dict[str, np.ndarray[Any, Any]]:
    """Where each layer of a network samples, by what the page gets: x, y in the picture."""
    answer = ask(server, picture, "layers", network=index)
    values = np.frombuffer(bytes_of(server, picture, answer["bytes"]), "<f4")
    scale = np.array(answer["facts"]["image"]) / np.array(answer["facts"]["resized"])
    points = {}
    for layer in answer["facts"]["layers"]:
        taps = np.array(layer["taps"])  # [G K, 2]
        outputs = np.stack(np.indices(layer["output"]), axis=-1)  # [Ho, Wo, 2]
        start = taps * layer["dilation"] - np.array(layer["padding"])
        places = start[:, None, None] + outputs * layer["stride"]
        if layer["offset"] is not None:
            offset = values[layer["offset"] :][: 2 * places[..., 0].size].reshape(len(taps), 2, *layer["output"])
            places = places + offset.transpose(0, 2, 3, 1)
        pixels = (places * layer["inputStride"] + 0.5) * scale - 0.5
        points[layer["name"]] = pixels[..., ::-1].reshape(-1, 2)
    return points


def objects_by_pixel(server: Running, picture: str) -> np.ndarray[Any, Any]:
    answer = ask(server, picture, "detections")
    return np.frombuffer(bytes_of(server, picture, answer["bytes"]), "<i2").reshape(80, 112)


def test_a_click_on_an_object(server: Running, png: Path, command: Any) -> None:
    picture = upload(server, png.read_bytes())
    y, x = (int(v[len(v) // 2]) for v in (objects_by_pixel(server, picture) >= 0).nonzero())
    wrote, found = command("--at", f"{x},{y}", "--layer", LAYER)
    assert wrote[0]["object"] is not None
    assert wrote[0]["object_index"] == objects_by_pixel(server, picture)[y, x]
    assert wrote[0]["summaries"]["field"]["inside"] > 0
    for index, (numbers, explanation) in enumerate(zip(wrote, found, strict=True)):
        check_answers(server, picture, index, {"node": numbers["node"], "point": [x, y]}, numbers, explanation)
        shown = points_of(server, picture, index)
        assert list(shown) == numbers["layers"]
        for name, points in shown.items():
            assert np.abs(points - explanation.sampling.of(name).points.numpy()).max() < 1e-3


@pytest.mark.parametrize("on_object", [True, False])
def test_a_click_at_the_edge_of_an_object(server: Running, png: Path, command: Any, on_object: bool) -> None:
    """Two clicks side by side have one node; the pixel that was clicked decides, not the node's own place."""
    picture = upload(server, png.read_bytes())
    objects = objects_by_pixel(server, picture)
    model, pixels = server.networks[0].model, picture_tensor(noise())
    for y, x in np.argwhere((objects[:, 1:] < 0) & (objects[:, :-1] >= 0)).tolist():
        if analysis.node_at(model, pixels, LAYER, x, y) == analysis.node_at(model, pixels, LAYER, x + 1, y):
            break
    else:
        raise AssertionError("no such pixels")
    x += not on_object
    wrote, found = command("--at", f"{x},{y}", "--layer", LAYER)
    assert wrote[0]["object_index"] == (objects[y, x] if on_object else None)
    check_answers(server, picture, 0, {"node": wrote[0]["node"], "point": [x, y]}, wrote[0], found[0])


@pytest.mark.parametrize("number", [0, -1])
def test_a_chosen_object(server: Running, png: Path, command: Any, number: int) -> None:
    picture = upload(server, png.read_bytes())
    detections = ask(server, picture, "detections")["facts"]["detections"]
    chosen, box = detections[number], detections[number]["box"]
    wrote, found = command("--roi", ",".join(map(str, box)))
    assert wrote[0]["object_index"] == number % len(detections)
    assert wrote[0]["object"] == f"{chosen['name']} {chosen['score']:.2f}"
    for index, (numbers, explanation) in enumerate(zip(wrote, found, strict=True)):
        check_answers(server, picture, index, {"node": {"roi": box}}, numbers, explanation)
        bins = ask(server, picture, "bins", network=index, node={"roi": box})["facts"]
        assert bins["object_index"] == numbers["object_index"]
        pooled = explanation.sampling.of("*box_roi_pool*").points.numpy()
        near = np.abs(pooled[:, None] - np.array(bins["points"])).max(axis=-1).min(axis=0)
        assert near.max() < 1e-3


def test_the_picture_is_read_alike(server: Running, png: Path) -> None:
    picture = upload(server, png.read_bytes())
    assert ask(server, picture, "layers")["facts"]["image"] == list(noise().shape[:2])
