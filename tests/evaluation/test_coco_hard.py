"""All 24 figures are pycocotools' to 1e-6 where overlaps, areas and scores lie exactly at the borders."""

from __future__ import annotations

from collections import Counter

import pytest

from .coco_cases import assert_same_figures, hard_case

SEEDS = range(24)


@pytest.mark.parametrize("first", SEEDS[::6])
def test_figures_at_the_borders_are_pycocotools_own(first: int) -> None:
    for seed in range(first, first + 6):
        truth, results = hard_case(seed)
        if results:  # pycocotools refuses to read none
            assert_same_figures(truth, results)


def test_the_cases_are_as_hard_as_they_claim() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        truth, results = hard_case(seed)
        annotated = {a["image_id"] for a in truth["annotations"]}
        of_image = Counter(result["image_id"] for result in results)
        of_class = Counter((result["image_id"], result["category_id"]) for result in results)
        scores = Counter(result["score"] for result in results)
        seen["an image without annotations"] += len(truth["images"]) > len(annotated)
        seen["results on an image without annotations"] += bool(of_image.keys() - annotated)
        seen["a class without results"] += len({r["category_id"] for r in results}) < len(truth["categories"])
        seen["more than 100 results of a class in an image"] += max(of_class.values(), default=0) > 100
        seen["ties"] += max(scores.values(), default=0) > 10
        seen["crowds"] += any(a["iscrowd"] for a in truth["annotations"])
        seen["a polygon"] += any(isinstance(a["segmentation"], list) for a in truth["annotations"])
        for area in (32.0**2, 96.0**2):
            seen[f"an object of {area}"] += any(a["area"] == area for a in truth["annotations"])
            seen[f"a result of {area}"] += any(r["bbox"][2] * r["bbox"][3] == area for r in results)
    assert min(seen.values()) >= 3, seen
