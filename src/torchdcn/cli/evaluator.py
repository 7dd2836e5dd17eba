"""What ``torchdcn train`` does on val: figures as a table, pictures for TensorBoard, AP by class at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import nn

    from ..detector import Detector
    from ..evaluation import Evaluation

PICTURES = 4
SCORE = 0.3
"""Detections that are drawn score more."""


class Evaluator:
    """Evaluates a model on a split, with a progress bar and a table.

    The annotations are read now and held against the model before training (``check``), so that a fault in them doesn't
    end a run of hours. The images are read only when they are evaluated; with ``skip_bad`` those that can't be read are
    left out.
    """

    def __init__(self, data: str, split: str, out: Console, *, skip_bad: bool = False) -> None:
        from ..data import open_dataset
        from .options import drawing

        self.split, self.out, self.skip_bad = split, out, skip_bad
        self.evaluations: dict[str, Evaluation] = {}  # the last ones
        self.skipped: dict[int, str] = {}  # images, on the first process
        with drawing(data, out) as progress:
            self.dataset = open_dataset(data, split, masks=False, progress=progress)

    def check(self, model: Any) -> None:
        """Compares the split with a model that has the training data's classes.

        Raises:
            ValueError: Its classes are not the model's, or it has no masks to judge the model's by.
        """
        from ..evaluation import check_fit

        dataset, known = self.dataset, dict(zip(model.class_names, model.category_ids, strict=True))
        for name, category_id in zip(dataset.class_names, dataset.category_ids, strict=True):
            if known.get(name) != category_id:
                trained = f"there with the id {known[name]}" if name in known else "not there"
                raise ValueError(
                    f"{dataset.annotation_file}: the class {name!r} (id {category_id}) is {trained} in the training"
                    " data; give all splits the same categories"
                )
        check_fit(None, model.settings.masks, dataset)

    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The figures, which it prints too."""
        from ..detector import Detector
        from ..evaluation import evaluations_of, metrics_table
        from ..training.distributed import current
        from ..training.progress import counter

        skipped: dict[int, str] = {}
        skip_bad = skipped.__setitem__ if self.skip_bad else None
        with counter(f"evaluating on {self.split}", self.out) as progress:
            self.evaluations, _ = evaluations_of(
                Detector(model), self.dataset, progress, processes=current(), skip_bad=skip_bad
            )
        tell_skipped(skipped, len(self.dataset), self.out, told=self.skipped)
        self.skipped |= skipped
        metrics = {kind: evaluation.metrics for kind, evaluation in self.evaluations.items()}
        self.out.print(metrics_table(metrics))
        return metrics

    def pictures(self, model: nn.Module) -> dict[str, NDArray[np.uint8]]:
        """Detections on some pictures of the split, and where deformable layers sample for an object in each.

        The pictures are the same each time: spread over those with objects.
        """
        from ..detector import Detector
        from ..plotting import detections_grid

        detector = Detector(model)
        found, samples = [], []
        for index in self._shown():
            image = self.dataset.read_image(index)
            found.append(detector(image).draw(image, score_threshold=SCORE, scale=None))
            sample = self._samples(detector, index, image)
            samples += [] if sample is None else [sample]
        sheets = {"detections": found, "offsets": samples}
        return {name: detections_grid(drawn, width=1200) for name, drawn in sheets.items() if drawn}

    def _shown(self) -> list[int]:
        seen = [index for index in range(len(self.dataset)) if index not in self.skipped]
        with_objects = [index for index in seen if self.dataset.labels(index)]
        step = max(1, len(with_objects) // PICTURES)
        return with_objects[::step][:PICTURES]

    def _samples(self, detector: Detector, index: int, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """The samples for the middle of the largest object; None if the model has no deformable convolution."""
        import torch

        from ..analysis import node_at, sampling_locations
        from ..nn import DeformConv2dPack
        from ..plotting import draw_sampling_points

        model = detector.model
        layers = [name for name, module in model.named_modules() if isinstance(module, DeformConv2dPack)]
        boxes = self.dataset.target(index)["boxes"].as_subclass(torch.Tensor)
        if not layers:
            return None
        # conv4's show more than the last stage's on small pictures, where one position of that covers an object.
        layer = next((name for name in reversed(layers) if ".layer3." in name), layers[-1])
        x1, y1, x2, y2 = boxes[((boxes[:, 2:] - boxes[:, :2]).prod(1)).argmax()].tolist()
        pixels = torch.tensor(image, device=detector.device).permute(2, 0, 1) / 255
        node = node_at(model, pixels, layer, x=(x1 + x2 - 1) / 2, y=(y1 + y2 - 1) / 2)
        places = sampling_locations(model, pixels, node)
        return draw_sampling_points(image, places.points, places.weights, places.centre, places.regular)

    def summary(self) -> None:
        """Prints the last evaluation's figures by class."""
        from ..evaluation import class_table

        if self.evaluations:
            self.out.print(class_table({kind: each.per_class for kind, each in self.evaluations.items()}))


def tell_skipped(skipped: Mapping[int, str], images: int, out: Console, told: Collection[int] = ()) -> None:
    """Names the images that an evaluation has left out, but for those that were told before."""
    for index, why in skipped.items():
        if index not in told:
            out.print(f"skipped: {why}", markup=False, highlight=False, soft_wrap=True)
    if skipped:
        out.print(f"The figures leave out {len(skipped)} of {images} images, and what is annotated on them")
