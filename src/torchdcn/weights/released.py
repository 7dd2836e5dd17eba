"""``weights="coco"``: the published checkpoints, fetched once and kept under our names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ..detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from ..files import exclusive_lock
from .download import TransferError, download, has_hash
from .mmdet import convert_mmdet
from .read import read_state_dict
from .torchdcn_file import WeightsInfo, read_info, write_weights

MIRROR = "TORCHDCN_WEIGHTS_URL"
"""The environment variable that replaces ``https://download.openmmlab.com``."""

WAITING = "waiting for another process that fetches the same weights"


@dataclass(frozen=True)
class Published:
    """What mmdetection published for a model (COCO 2017 val, 12 epochs, V100 GPUs); not measured here.

    Attributes:
        box_ap: In percent.
        mask_ap: In percent, or None without masks.
        train_memory_gb: Of one GPU in training.
        fps: Images per second at test time.
        weights_url: Where the weights are; the last eight digits of the name start their SHA-256.
    """

    box_ap: float
    mask_ap: float | None
    train_memory_gb: float
    fps: float | None
    weights_url: str

    @property
    def sha256_prefix(self) -> str:
        """The first eight hexadecimal digits of the weights file's SHA-256."""
        return self.weights_url.removesuffix(".pth").rsplit("-", 1)[1]


_SERVER_FOLDER = "https://download.openmmlab.com/mmdetection/v2.0"

PUBLISHED = {
    "faster_rcnn_r50_fpn_mdconv_c3-c5": Published(
        41.4, None, 4.1, 17.6,
        f"{_SERVER_FOLDER}/dcn/faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco/"
        "faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200130-d099253b.pth",
    ),
    "faster_rcnn_r50_fpn_mdconv_c3-c5_group4": Published(
        41.5, None, 4.2, 17.4,
        f"{_SERVER_FOLDER}/dcn/faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco/"
        "faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco_20200130-01262257.pth",
    ),
    "faster_rcnn_r50_fpn_mdpool": Published(
        38.7, None, 5.8, 16.6,
        f"{_SERVER_FOLDER}/dcn/faster_rcnn_r50_fpn_mdpool_1x_coco/faster_rcnn_r50_fpn_mdpool_1x_coco_20200307-c0df27ff.pth",
    ),
    "mask_rcnn_r50_fpn_mdconv_c3-c5": Published(
        41.5, 37.1, 4.5, 15.1,
        f"{_SERVER_FOLDER}/dcn/mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco/"
        "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200203-ad97591f.pth",
    ),
    "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5": Published(
        42.0, 37.6, 3.1, None,
        f"{_SERVER_FOLDER}/fp16/mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco/"
        "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco_20210520_180434-cf8fefa5.pth",
    ),
}  # fmt: skip


def released_weights(name: str) -> Path:
    """The file with a model's published weights, under our names; downloaded and converted at its first use.

    It lies in ``checkpoints`` of torch hub's folder (``torch.hub.get_dir()``, which the environment variable
    ``TORCH_HOME`` moves), beside the original, whose hash is checked before it is read. An original that is there
    already is not fetched again. Processes that want the same file wait for the first of them.

    Args:
        name: One of those that :data:`~torchdcn.weights.released.PUBLISHED` has.

    Raises:
        ValueError: There are none for this model, or the environment variable ``TORCHDCN_WEIGHTS_URL``, which names
            another server with the same paths, is no such address.
        OSError: They can't be fetched, or the folder can't be written.

    Example:
        >>> from torchdcn.weights.released import released_weights
        >>> path = released_weights("faster_rcnn_r50_fpn_mdconv_c3-c5")  # doctest: +SKIP
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"weights: there are no released weights ('coco') for {name}; there are for {', '.join(PUBLISHED)}"
        )
    published = PUBLISHED[name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    original = folder / published.weights_url.rsplit("/", 1)[-1]
    converted = original.with_suffix(".safetensors")
    if not _is_converted(converted, name, original.name):
        address = _resolve_url(published)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder / f".{converted.name}.lock", notice=WAITING):
                if not _is_converted(converted, name, original.name):  # by the process that was waited for
                    _download_and_convert(converted, original, name, published, address)
        except TransferError as error:
            it = "it" if address == published.weights_url else published.weights_url
            raise TransferError(
                f"weights: {address} could not be fetched: {error}; "
                f"download {it} yourself and give the file's path, or put it into {folder}"
            ) from error
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"weights: {folder} can't be used ({reason}); set TORCH_HOME to another folder") from error
    return converted


def _resolve_url(published: Published) -> str:
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return published.weights_url
    if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc:
        raise ValueError(f"{MIRROR}: expected http://HOST or https://HOST, got {mirror!r}")
    return mirror.rstrip("/") + urlsplit(published.weights_url).path


def _is_converted(path: Path, name: str, source: str) -> bool:
    if not path.is_file():
        return False
    try:
        info = read_info(path)
    except ValueError:
        return False
    return info is not None and (info.model, info.source) == (name, source)


def _download_and_convert(converted: Path, original: Path, name: str, published: Published, address: str) -> None:
    if not has_hash(original, published.sha256_prefix):
        download(address, original, published.sha256_prefix)
    tensors = {key: value.contiguous() for key, value in convert_mmdet(read_state_dict(original)).items()}
    info = WeightsInfo(name, len(COCO_CLASS_NAMES), {}, COCO_CLASS_NAMES, COCO_CATEGORY_IDS, source=original.name)
    write_weights(tensors, info, converted)
