"""Runs an exported detector beside PyTorch's, on scenes of many sizes: the figures of docs/export.md.

torchdcn demo --out runs/demo
torchdcn export detector.onnx --model mask_rcnn_r18_fpn_mdconv_c3-c5 --weights runs/demo/training/last.safetensors
python docs/check_onnx.py detector.onnx runs/demo/training/last.safetensors
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import torchdcn
from torchdcn.data import make_synthetic
from torchdcn.models.weights import read_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[Any], dict[str, Any]]

NAMES = ("boxes", "scores", "labels", "masks")


def in_onnxruntime(path: str) -> tuple[str, Run]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [output.name for output in session.get_outputs()]
    return f"onnxruntime {onnxruntime.__version__}", lambda image: dict(
        zip(found, session.run(None, {"image": image}), strict=True)
    )


def in_openvino(path: str) -> tuple[str, Run]:
    import openvino
    from openvino import opset8
    from openvino.frontend.onnx import ConversionExtension

    def deform_conv(node: Any) -> Any:
        data, filters, offsets = (node.get_input(i) for i in range(3))
        pads = list(node.get_attribute("pads", [0, 0, 0, 0]))
        result = opset8.deformable_convolution(
            data, offsets, filters,
            list(node.get_attribute("strides", [1, 1])), pads[:2], pads[2:],
            list(node.get_attribute("dilations", [1, 1])),
            mask=node.get_input(4) if node.get_input_size() > 4 else None,
            group=node.get_attribute("group", 1),
            deformable_group=node.get_attribute("offset_group", 1),
            bilinear_interpolation_pad=True,
        )  # fmt: skip
        return result.outputs()

    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", deform_conv))
    compiled = core.compile_model(path, "CPU")

    def run(image: Any) -> dict[str, Any]:
        results = compiled([image])
        return {name: results[name] for name in NAMES if name in {n for o in compiled.outputs for n in o.names}}

    return f"OpenVINO {openvino.__version__}", run


def pictures(count: int = 12) -> Iterator[Any]:  # [3, H, W] each, of another size each
    with tempfile.TemporaryDirectory() as folder:
        make_synthetic(Path(folder) / "scenes", train=1, val=count, size=160, seed=7)
        for i, path in enumerate(sorted((Path(folder) / "scenes" / "val").iterdir())):
            with Image.open(path) as opened:
                scene = opened.convert("RGB").resize((200 - 6 * i, 120 + 10 * i))
            yield np.asarray(scene, np.float32).transpose(2, 0, 1) / 255


def main(path: str, weights: str) -> None:
    info = read_info(weights)
    if info is None:
        raise SystemExit(f"{weights}: expected a .safetensors file of torchdcn")
    model = torchdcn.models.create_model(info.model, weights=weights).eval()
    runtimes = [in_onnxruntime(path)] + ([in_openvino(path)] if find_spec("openvino") else [])
    images = list(pictures())
    with torch.no_grad():
        expected = [{k: v.numpy() for k, v in model([torch.from_numpy(image)])[0].items()} for image in images]
    for name, run in runtimes:
        same, worst = 0, dict.fromkeys(expected[0], 0.0)
        for image, wanted in zip(images, expected, strict=True):
            found = run(image)
            if len(found["scores"]) == len(wanted["scores"]):
                same += len(wanted["scores"])
                for key, value in wanted.items():
                    difference = np.abs(found[key].astype(float) - value)
                    worst[key] = max(worst[key], float(difference.max(initial=0)))
        total = sum(len(wanted["scores"]) for wanted in expected)
        print(f"{name}: {same} of {total} detections in {len(images)} pictures, largest differences", worst)


if __name__ == "__main__":
    main(*sys.argv[1:])
