from __future__ import annotations

import re

import pytest

from torchdcn.bench.detectors import group_contenders
from torchdcn.bench.models import DetectorTimes, ModelFigures
from torchdcn.bench.models_tables import show_models
from torchdcn.bench.parts import PARTS, REST, Counts
from torchdcn.models import list_models

LONGEST = max((name for name in list_models() if name.startswith("mask")), key=len)  # with all parts


def make_figures(names: list[str]) -> ModelFigures:
    """Every part takes half a second."""
    figures = ModelFigures(group_contenders(names))
    for group in figures.groups:
        found = [str(one) for one in group]
        masks = "mask" in found[0]
        names = [part for part in PARTS if masks or part not in ("mask head", "pasting")]
        parts = {name: {part: [0.5] for part in [*names, REST]} for name in found}
        times = {name: [0.5 * (len(names) + 1)] for name in found}
        counts = Counts(1000, 1000, 100 if masks else 0, 100)
        figures.detection.append(DetectorTimes("detection", group[0].amp, counts, times, parts))
    return figures


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_longest_name_leaves_all_numbers_whole(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show_models(make_figures([LONGEST, "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5"]), "800x1344", 2, 1, {})
    out = capsys.readouterr().out
    assert "…" not in out
    row = next(line for line in out.split("Seconds of detection")[1].splitlines() if line.strip().startswith(LONGEST))
    assert row.split()[1:] == ["3.50" if name == "whole" else "0.500" for name in ("whole", *PARTS, REST)]


def test_networks_that_have_other_things_to_do_stand_in_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    show_models(
        make_figures(["mask_rcnn_r50_fpn_mdconv_c3-c5", "faster_rcnn_r50_fpn_mdconv_c3-c5"]), "800x1344", 2, 1, {}
    )
    found = re.findall(r"^Seconds of .*", capsys.readouterr().out, re.MULTILINE)
    assert found == [
        "Seconds of detection, batch 1: 1000 proposals, 100 detections, 100 masks",
        "Seconds of detection, batch 1: 1000 proposals, 100 detections",
    ]
