from __future__ import annotations

import numpy as np
import pytest

from torchdcn.plotting import detections_grid, loss_curve, precision_recall
from torchdcn.plotting.charts import _running_median


def test_the_loss_curve_has_the_size_asked_for_and_survives_values_that_are_not_finite() -> None:
    steps = np.arange(50)
    loss = np.exp(-steps / 20)
    loss[7] = np.nan
    drawn = loss_curve(steps, {"loss": loss, "empty": np.full(50, np.inf)}, marks={"lr / 10": 30}, size=(640, 300))
    assert drawn.shape == (300, 640, 3)
    assert (drawn != 255).any()
    assert loss_curve([], {"loss": []}).shape == (480, 900, 3)


def test_the_running_median_ignores_a_spike() -> None:
    values = np.ones(21)
    values[10] = 100
    assert _running_median(values, 5).tolist() == [1] * 21
    assert _running_median(values, 1).tolist() == values.tolist()


def test_losses_must_match_the_steps() -> None:
    with pytest.raises(ValueError, match=r"^losses: expected 3 values"):
        loss_curve([1, 2, 3], {"loss": [1, 2]})


def test_classes_without_objects_are_left_out_of_precision_over_recall() -> None:
    precision = np.full((10, 101, 2), 0.5)
    precision[:, :, 1] = -1
    alone = precision_recall({"boxes": precision[:, :, :1]}, ["cat"])
    np.testing.assert_array_equal(precision_recall({"boxes": precision}, ["cat", "dog"]), alone)
    nothing = precision_recall({"boxes": np.full((10, 101, 1), -1.0)}, ["cat"])
    assert nothing.shape == alone.shape
    assert (nothing != alone).any()


def test_precision_over_recall_has_a_column_for_each_kind_and_a_row_by_class_where_they_are_few() -> None:
    few, many = np.random.default_rng(0).random((2, 10, 101, 9))
    one = precision_recall({"boxes": few[:, :, :1]}, ["cat"])
    assert one.shape == (600, 810, 3)
    both = precision_recall({"boxes": few[:, :, :3], "masks": many[:, :, :3]}, ["cat", "dog", "eel"], title="val")
    assert both.shape == (1200, 1620, 3)
    assert precision_recall({"boxes": many}, [f"class {i}" for i in range(9)]).shape == one.shape


@pytest.mark.parametrize("precision", [{}, {"boxes": np.ones((10, 101, 2))}, {"boxes": np.ones(101)}])
def test_precision_that_does_not_fit_the_classes_is_refused(precision: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"^precision: expected arrays \[10, 101, 1\] by name"):
        precision_recall(precision, ["cat"])


def test_the_grid_fits_pictures_of_any_size_into_equal_cells() -> None:
    pictures = [np.full((h, w, 3), 90, np.uint8) for h, w in ((50, 80), (400, 100), (9, 2000), (64, 64), (128, 128))]
    sheet = detections_grid(pictures, [f"picture {i}" for i in range(5)], columns=3, width=900)
    assert sheet.shape[1] == 900
    assert (sheet == 90).all(-1).sum() > 10_000


@pytest.mark.parametrize(("pictures", "captions", "name"), [(0, None, "pictures"), (2, ["one"], "captions")])
def test_an_empty_grid_or_missing_captions_are_refused(pictures: int, captions: list[str] | None, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        detections_grid([np.zeros((8, 8, 3), np.uint8)] * pictures, captions)
