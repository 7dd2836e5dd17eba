"""``weights="coco"``: the published checkpoints, fetched once and kept under our names."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from .download import TransferError, download, has_hash
from .mmdet import convert_mmdet
from .weights import WeightsInfo, read_info, read_state_dict, write_weights
from .zoo import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .zoo import Published

MIRROR = "TORCHDCN_WEIGHTS_URL"
"""The environment variable that replaces ``https://download.openmmlab.com``."""


def released_weights(name: str) -> Path:
    """The file with a model's published weights, under our names; downloaded and converted at its first use.

    It lies in ``checkpoints`` of torch hub's folder (``torch.hub.get_dir()``, which the environment variable
    ``TORCH_HOME`` moves), beside the original, whose hash is checked before it is read. An original that is there
    already is not fetched again. Processes that want the same file wait for the first of them.

    Args:
        name: One of those that :data:`~torchdcn.models.zoo.PUBLISHED` has.

    Raises:
        ValueError: There are none for this model, or the environment variable ``TORCHDCN_WEIGHTS_URL``, which names
            another server with the same paths, is no such address.
        OSError: They can't be fetched, or the folder can't be written.

    Example:
        >>> from torchdcn.models.released import released_weights
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
        address = _address(published)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder / f".{converted.name}.lock"):
                if not _is_converted(converted, name, original.name):  # by the process that was waited for
                    _make(converted, original, name, published, address)
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


def _address(published: Published) -> str:
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


def _make(converted: Path, original: Path, name: str, published: Published, address: str) -> None:
    from ..detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

    if not has_hash(original, published.sha256_prefix):
        download(address, original, published.sha256_prefix)
    tensors = {key: value.contiguous() for key, value in convert_mmdet(read_state_dict(original)).items()}
    info = WeightsInfo(name, len(COCO_CLASS_NAMES), {}, COCO_CLASS_NAMES, COCO_CATEGORY_IDS, source=original.name)
    write_weights(tensors, info, converted)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While no other process has this lock."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=1)
    except Timeout:
        sys.stderr.write("waiting for another process that fetches the same weights\n")
        held.acquire()
    try:
        yield
    finally:
        held.release()
