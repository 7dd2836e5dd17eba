"""The evaluation in ``torchdcn train``: figures as a table, pictures for TensorBoard, AP by class at the end."""

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
"""The lowest score of detections that are drawn."""


class Evaluator:
    """Evaluates a model on a split, with a progress bar and a table.

    It is the argument ``evaluate`` of :func:`torchdcn.training.train`, which calls the methods in their order here.
    ``open`` reads the annotations and ``check`` compares them with the model, both before training, so that a fault in
    them does not end a run of hours. The images are read when they are evaluated; with ``skip_bad`` those that can't be
    read are left out.
    """

    def __init__(self, data: str, split: str, out: Console, *, skip_bad: bool = False) -> None:
        self.data, self.split, self.out, self.skip_bad = data, split, out, skip_bad
        self.evaluations: dict[str, Evaluation] = {}  # of the last call, by kind
        self.skipped: dict[int, str] = {}  # images that can't be read, and why; in rank 0

    def open(self) -> None:
        """Opens the split, which is drawn or converted at its first use.

        Raises:
            ValueError: The annotations are faulty.
            OSError: There is no such data, or it can't be read.
        """
        from ..data import open_dataset
        from .options import drawing

        with drawing(self.data, self.out) as progress:
            self.dataset = open_dataset(self.data, self.split, masks=False, progress=progress)

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
        """Evaluates the model, prints the figures and gives them."""
        from ..detector import Detector
        from ..evaluation import evaluations_of, metrics_table
        from ..training.distributed import current_processes
        from ..training.progress import counter

        skipped: dict[int, str] = {}
        skip_bad = skipped.__setitem__ if self.skip_bad else None
        with counter(f"evaluating on {self.split}", self.out) as progress:
            self.evaluations, _ = evaluations_of(
                Detector(model), self.dataset, progress, processes=current_processes(), skip_bad=skip_bad
            )
        print_skipped(skipped, len(self.dataset), self.out, known=self.skipped)
        self.skipped |= skipped
        metrics = {kind: evaluation.metrics for kind, evaluation in self.evaluations.items()}
        self.out.print(metrics_table(metrics))
        return metrics

    def pictures(self, model: nn.Module) -> dict[str, NDArray[np.uint8]]:
        """Draws detections on some pictures of the split, and the sampling points for an object in each.

        The pictures are the same at each call: evenly spaced among those with objects.
        """
        from ..detector import Detector
        from ..plotting import detections_grid

        detector = Detector(model)
        found, samples = [], []
        for index in self._drawn_indices():
            image = self.dataset.read_image(index)
            found.append(detector(image).draw(image, score_threshold=SCORE, scale=None))
            sample = self._draw_samples(detector, index, image)
            samples += [] if sample is None else [sample]
        sheets = {"detections": found, "offsets": samples}
        return {name: detections_grid(drawn, width=1200) for name, drawn in sheets.items() if drawn}

    def _drawn_indices(self) -> list[int]:
        readable = [index for index in range(len(self.dataset)) if index not in self.skipped]
        with_objects = [index for index in readable if self.dataset.labels(index)]
        step = max(1, len(with_objects) // PICTURES)
        return with_objects[::step][:PICTURES]

    def _draw_samples(self, detector: Detector, index: int, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """The sampling points for the middle of the largest object; None if the model has no deformable convolution."""
        import torch

        from ..analysis import draw_samples_in_box
        from ..nn import DeformConv2dPack

        model = detector.model
        layers = [name for name, module in model.named_modules() if isinstance(module, DeformConv2dPack)]
        boxes = self.dataset.target(index)["boxes"].as_subclass(torch.Tensor)
        if not layers:
            return None
        # On small pictures one position of the last stage covers a whole object; conv4 shows more.
        layer = next((name for name in reversed(layers) if ".layer3." in name), layers[-1])
        largest = boxes[((boxes[:, 2:] - boxes[:, :2]).prod(1)).argmax()].tolist()
        return draw_samples_in_box(model, image, largest, layer)

    def print_class_table(self) -> None:
        """Prints the figures of the last evaluation by class."""
        from ..evaluation import class_table

        if self.evaluations:
            self.out.print(class_table({kind: each.per_class for kind, each in self.evaluations.items()}))


def print_skipped(skipped: Mapping[int, str], images: int, out: Console, known: Collection[int] = ()) -> None:
    """Prints which images an evaluation has left out, except those that are known already, and how many."""
    for index, why in skipped.items():
        if index not in known:
            out.print(f"skipped: {why}", markup=False, highlight=False, soft_wrap=True)
    if skipped:
        out.print(f"The figures leave out {len(skipped)} of {images} images, and what is annotated on them")
