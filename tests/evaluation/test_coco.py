"""The figures are pycocotools' own, on cases made to be hard."""

from __future__ import annotations

import copy
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchdcn.detections import Detections
from torchdcn.evaluation import class_table, evaluate, evaluate_coco, evaluate_detector, metrics_table

from .coco_cases import SIZE, assert_same_figures, make_case, pycocotools, rle

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.mark.parametrize("seed", range(8))
def test_figures_are_pycocotools_own_with_crowds_ties_and_empty_images_and_classes(seed: int) -> None:
    assert_same_figures(*make_case(seed))


def test_more_than_100_detections_an_image_are_cut_as_pycocotools_cuts_them() -> None:
    truth, results = make_case(11, images=3, found_per_object=120)
    counts = Counter((result["image_id"], result["category_id"]) for result in results)
    assert max(counts.values()) > 100
    assert_same_figures(truth, results)


def test_all_scores_equal_keeps_the_order_of_the_results() -> None:
    truth, results = make_case(12)
    assert_same_figures(truth, [{**result, "score": 0.5} for result in results])


def test_only_crowds_and_results_on_images_without_objects() -> None:
    truth, results = make_case(13)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    results += [{**result, "image_id": truth["images"][-1]["id"]} for result in results[:5]]
    assert_same_figures(truth, results)


def test_per_class_ap_and_the_precision_curve_are_pycocotools_own() -> None:
    truth, results = make_case(14)
    evaluation = evaluate(truth, results, ["segm"])["segm"]
    _, expected = pycocotools(truth, results, "segm")
    precision = expected.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(evaluation.precision, precision, atol=1e-6)
    for index, name in enumerate(["class 2", "class 5", "class 7"]):
        assert evaluation.per_class[name]["AP"] == pytest.approx(precision[:, :, index].mean(), abs=1e-6)
    assert evaluation.per_class["class 90"]["AP"] == -1
    assert sum(c["objects"] for c in evaluation.per_class.values()) == sum(
        not a["iscrowd"] for a in truth["annotations"]
    )


def test_perfect_detections_score_1_and_an_annotation_may_have_id_0() -> None:
    truth, _ = make_case(15)
    for index, annotation in enumerate(truth["annotations"]):
        annotation["id"], annotation["iscrowd"] = index, 0
    results = [{**annotation, "score": 0.9} for annotation in truth["annotations"]]
    figures = evaluate_coco(truth, results)
    assert figures["bbox"]["AP"] == figures["segm"]["AP"] == 1


def test_no_results_give_0_and_nothing_to_measure_gives_minus_1() -> None:
    truth, _ = make_case(16)
    assert evaluate_coco(truth, [])["segm"]["AP"] == 0
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] < 32**2]
    figures = evaluate_coco(truth, [])["bbox"]
    assert figures["AP"] == figures["APs"] == figures["AR100"] == 0
    assert figures["APl"] == -1


def test_the_input_stays_as_it_was_and_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    truth, results = make_case(17)
    before = copy.deepcopy((truth, results))
    figures = evaluate_coco(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    assert evaluate_coco(file, results) == figures
    assert json.loads(json.dumps(figures)) == figures


def test_polygons_plain_run_lengths_and_missing_areas_are_understood() -> None:
    image = {"id": 1, "height": 20, "width": 20}
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    truth = {
        "images": [image],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "segmentation": square}],
    }
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.T.ravel(), -1]))).tolist()
    for segmentation in (square, {"size": [20, 20], "counts": runs}, rle(mask)):
        results = [{"image_id": 1, "category_id": 1, "score": np.float32(0.5), "segmentation": segmentation}]
        figures = evaluate_coco(truth, results)
        assert figures["bbox"]["AP"] == figures["segm"]["AP"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, "image_id 4"),
        ({"score": float("nan")}, "score"),
        ({"category_id": 0}, "category_id"),
        ({"bbox": [0, 0, 1]}, "bbox"),
        ({"segmentation": {"size": [3, 3], "counts": "09"}}, "size"),
        ({"score": None}, "entry 0 has the score None"),
        ({"bbox": None}, "entry 0 has the bbox None"),
        ({"segmentation": {"size": [SIZE, SIZE], "counts": "zzzzz~~~~"}}, "entry 0: .* damaged"),
        ({"segmentation": {"size": [SIZE, SIZE], "counts": "R2"}}, "entry 0: .* covers 66 pixels"),
        ({"segmentation": {"size": [SIZE, SIZE], "counts": [5, 5]}}, "entry 0: .* covers 10 pixels"),
        ({"segmentation": {"counts": "R2"}}, "entry 0: .* of size"),
    ],
)
def test_results_that_do_not_belong_raise_in_one_line(change: dict[str, Any], message: str) -> None:
    truth, results = make_case(18)
    with pytest.raises(ValueError, match=message) as error:
        evaluate_coco(truth, [{**results[0], **change}])
    assert "\n" not in str(error.value)


def test_ground_truth_with_a_truncated_mask_is_named() -> None:
    truth, results = make_case(18)
    mask = truth["annotations"][2]["segmentation"]
    mask["counts"] = mask["counts"][:-3]
    with pytest.raises(ValueError, match=r"annotation 3: segmentation: its RLE"):
        evaluate_coco(truth, results, ["segm"])


def test_results_that_are_not_dicts_are_named() -> None:
    truth, _ = make_case(18)
    with pytest.raises(ValueError, match=r"^results: entry 0 has no"):
        evaluate_coco(truth, "results.json")  # type: ignore[arg-type]


def test_classes_of_one_name_are_kept_apart() -> None:
    truth, results = make_case(22)
    for category in truth["categories"]:
        category["name"] = "thing"
    assert list(evaluate(truth, results, ["bbox"])["bbox"].per_class) == [
        "thing",
        *(f"thing ({i})" for i in (5, 7, 90)),
    ]


def test_results_without_masks_need_boxes_alone() -> None:
    truth, results = make_case(19)
    boxes = [{key: value for key, value in r.items() if key != "segmentation"} for r in results]
    with pytest.raises(ValueError, match="segmentation"):
        evaluate_coco(truth, boxes)
    assert evaluate_coco(truth, boxes, ["bbox"])["bbox"] == evaluate_coco(truth, results, ["bbox"])["bbox"]


def test_a_missing_or_broken_ground_truth_raises_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        evaluate_coco(tmp_path / "none.json", [])
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"broken\.json"):
        evaluate_coco(broken, [])
    truth, _ = make_case(21)
    for key, entry in (("images", {"id": 1}), ("annotations", {"id": 1, "bbox": [0, 0, 1, 1]}), ("categories", {})):
        broken.write_text(json.dumps({**truth, key: [entry]}))
        with pytest.raises(ValueError, match=rf"broken\.json: {key}\[0\] has no"):
            evaluate_coco(broken, [])
    broken.write_text("[]")
    with pytest.raises(ValueError, match="images"):
        evaluate_coco(broken, [])


def oracle(dataset: Any) -> Any:
    """A detector that knows the annotations: it answers for the images in their order."""
    targets = iter([dataset.target(i) for i in range(len(dataset))])

    def detect(image: np.ndarray) -> Detections:
        target = next(targets)
        assert image.dtype == np.uint8
        return Detections(
            target["boxes"],
            np.ones(len(target["labels"])),
            target["labels"],
            target["masks"],
            dataset.class_names,
            image.shape[:2],
        )

    return detect


@pytest.mark.skipif(not SHARED.exists(), reason=f"real data not found at {SHARED}")
def test_a_detector_that_knows_the_answers_gets_nearly_full_marks_on_real_data() -> None:
    from torchdcn.data import CocoDetection

    dataset = CocoDetection(SHARED / "data" / "coco_sample", "val")
    calls: list[tuple[int, int]] = []
    metrics, results = evaluate_detector(oracle(dataset), dataset, lambda *done: calls.append(done))
    assert metrics["bbox"]["AP"] > 0.99
    assert metrics["segm"]["AP"] > 0.99
    assert calls[-1] == (57, 57)
    assert {result["category_id"] for result in results} <= set(dataset.category_ids)
    json.dumps(results)


@pytest.mark.skipif(not SHARED.exists(), reason=f"real data not found at {SHARED}")
def test_classes_are_matched_by_name_else_by_position_else_refused() -> None:
    from torchdcn.data import CocoDetection

    dataset = CocoDetection(SHARED / "data" / "nuclei", "val")
    dataset.image_ids = dataset.image_ids[:2]

    def detector(names: tuple[str, ...], label: int) -> Any:
        def detect(image: np.ndarray) -> Detections:
            return Detections(np.ones((1, 4)), np.ones(1), np.full(1, label), None, names, image.shape[:2])

        return detect

    metrics, results = evaluate_detector(detector(("cell", "nucleus"), 1), dataset)
    assert list(metrics) == ["bbox"]
    assert [result["category_id"] for result in results] == [1, 1]
    assert evaluate_detector(detector(("cell", "nucleus"), 0), dataset)[1] == []
    assert [r["category_id"] for r in evaluate_detector(detector(("class 0",), 0), dataset)[1]] == [1, 1]
    with pytest.raises(ValueError, match="classes"):
        evaluate_detector(detector(("cat", "dog"), 0), dataset)


class Folder:
    """A data set of two classes of one name."""

    def __init__(self, root: Path, masks: bool) -> None:
        self.annotation_file, self.image_ids = root / "instances_val.json", [1]
        self.class_names, self.category_ids = ("thing", "thing"), (4, 9)
        box = {"image_id": 1, "bbox": [2.0, 2.0, 8.0, 8.0], "area": 64.0, "iscrowd": 0}
        box |= {"segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]]} if masks else {}
        content = {
            "images": [{"id": 1, "height": 20, "width": 20}],
            "categories": [{"id": 4, "name": "thing"}, {"id": 9, "name": "thing"}],
            "annotations": [{**box, "id": 1, "category_id": 4}],
        }
        self.annotation_file.write_text(json.dumps(content))
        self.path = root / "1.png"

    def image_path(self, index: int) -> Path:
        assert index == 0
        from PIL import Image

        Image.new("RGB", (20, 20)).save(self.path)
        return self.path


def test_classes_of_one_name_are_matched_by_position(tmp_path: Path) -> None:
    def detect(image: np.ndarray) -> Detections:
        box = np.array([[2.0, 2.0, 10.0, 10.0]])
        return Detections(box, np.ones(1), np.zeros(1, int), None, ("thing", "thing"), image.shape[:2])

    metrics, results = evaluate_detector(detect, Folder(tmp_path, masks=False))
    assert [result["category_id"] for result in results] == [4]
    assert metrics["bbox"]["AP"] == 1


def test_a_detector_that_does_not_fit_is_refused_before_the_first_image(tmp_path: Path) -> None:
    class Blind:
        class_names = ("thing", "thing")

        def __call__(self, image: np.ndarray) -> Detections:
            raise AssertionError(f"ran on {image.shape}")

    with pytest.raises(ValueError, match=r'instances_val\.json: .*annotation 1 has no "segmentation"'):
        evaluate_detector(Blind(), Folder(tmp_path, masks=False), iou_types=("segm",))
    Blind.class_names = ("cat", "dog", "eel")
    with pytest.raises(ValueError, match="are not the detector's"):
        evaluate_detector(Blind(), Folder(tmp_path, masks=True))


def test_the_table_shows_percent_and_a_dash_where_nothing_was_measured() -> None:
    from rich.console import Console

    truth, results = make_case(20)
    evaluations = evaluate(truth, results)
    metrics = {kind: {**evaluation.metrics, "APl": -1.0} for kind, evaluation in evaluations.items()}
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(metrics_table(metrics))
    text = console.export_text()
    assert f"{100 * metrics['bbox']['AP']:.1f}" in text
    assert "–" in text


def test_the_table_by_class_has_a_line_for_each_with_its_objects() -> None:
    from rich.console import Console

    truth, results = make_case(20)
    per_class = {kind: evaluation.per_class for kind, evaluation in evaluate(truth, results).items()}
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(class_table(per_class))
    lines = [line.strip(" │").split("│") for line in console.export_text().splitlines() if "class " in line]
    assert [line[0].strip() for line in lines[-4:]] == ["class 2", "class 5", "class 7", "class 90"]
    figures = [per_class[kind]["class 5"][name] for kind in ("bbox", "segm") for name in ("AP", "AP50", "AR100")]
    assert [cell.strip() for cell in lines[-3][2:]] == [f"{100 * value:.1f}" for value in figures]
    assert int(lines[-3][1]) == per_class["bbox"]["class 5"]["objects"]
    assert {cell.strip() for cell in lines[-1][2:]} == {"–"}
