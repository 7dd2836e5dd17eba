from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from torchdcn.models import create_model
from torchdcn.models.mimic import Mimicking, crop_boxes, mimic_loss
from torchdcn.models.weights import read_info, save_weights
from torchdcn.models.zoo import settings_of

if TYPE_CHECKING:
    from torchdcn.models.rcnn import RCNN

PAGE = Path(__file__).parents[2] / "docs" / "mimicking.md"
FASTER = "faster_rcnn_r18_fpn_mdconv_c3-c5"
MASK = "mask_rcnn_r18_fpn_mdconv_c3-c5"
TINY = {"fpn_channels": 32, "box_head_channels": 48, "min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 100}


def small(name: str = FASTER, **overrides: Any) -> RCNN:
    torch.manual_seed(0)
    settings = TINY | {"num_classes": 3, "mimic": True, "mimic_patch_size": 64, "mimic_proposals": 4} | overrides
    return create_model(name, **settings)


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.rand(count, 3, 64, 80, dtype=dtype))


@pytest.fixture
def two(target: Any) -> list[dict[str, Tensor]]:
    return [target((8, 8, 40, 40), (30, 20, 70, 60), labels=[0, 2]), target((4, 10, 36, 50), labels=[1])]


def losses_of(model: nn.Module, batch: Any, targets: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    found: dict[str, Tensor] = model(batch, targets)
    return found


def mimicking(num_classes: int = 3, **overrides: Any) -> Mimicking:
    torch.manual_seed(3)
    return Mimicking(settings_of(FASTER, mimic_patch_size=8, **TINY, **overrides), num_classes).double()


class Sampled:
    """What a box head hands over: two images' samples, 3 and 1 of them positive."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        self.images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        corner = torch.rand(7, 2, dtype=torch.float64) * 10
        self.boxes = list(torch.cat([corner, corner + 8], dim=1).split([4, 3]))
        self.labels = [torch.tensor([2, 0, 1, 3]), torch.tensor([0, 1, 0])]
        self.fast = torch.randn(7, 48, dtype=torch.float64, requires_grad=True)
        self.positive = [0, 2, 3, 5]
        self.layer = nn.Linear(3 * 8 * 8, 48).double()

    def patch_features(self, patches: Tensor) -> Tensor:
        features: Tensor = self.layer(patches.flatten(1)).relu()
        return features

    def losses(self, module: Mimicking) -> dict[str, Tensor]:
        torch.manual_seed(5)
        return module(self.patch_features, self.images, self.boxes, self.labels, self.fast)

    def rcnn(self) -> Tensor:
        """The features of all positive samples' pixels, cut out one by one."""
        crops = []
        for row in self.positive:
            image, box = (0, self.boxes[0][row]) if row < 4 else (1, self.boxes[1][row - 4])
            at = (torch.arange(8, dtype=torch.float64) + 0.5) / 8  # of the box
            x, y = (2 * (box[i] + at * (box[i + 2] - box[i])) / 32 - 1 for i in (0, 1))
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
            crops.append(F.grid_sample(self.images[image][None], grid[None], align_corners=False))
        return self.patch_features(torch.cat(crops))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_box_of_the_patchs_size_at_whole_pixels_gives_these_very_pixels(dtype: torch.dtype):
    batch = torch.rand(2, 3, 300, 260).to(dtype)
    boxes = [torch.tensor([[20.0, 40, 244, 264], [0, 0, 224, 224]]), torch.tensor([[36.0, 76, 260, 300]])]
    crops = crop_boxes(batch, boxes, 224)
    expected = [batch[0, :, 40:264, 20:244], batch[0, :, :224, :224], batch[1, :, 76:, 36:]]
    torch.testing.assert_close(crops, torch.stack(expected), rtol=0, atol=1e-6)
    assert crops.dtype == dtype


def test_a_crop_is_bilinear_where_it_grows_and_an_average_where_it_shrinks():
    [image] = images(1)
    # Away from its border, where torch's resize repeats the outermost pixels and a crop sees those behind them.
    grown = F.interpolate(image[None, :, 10:26, 8:24], size=48, mode="bilinear")[0, :, 3:-3, 3:-3]
    [crop] = crop_boxes(image[None], [torch.tensor([[8.0, 10, 24, 26]])], 48)
    torch.testing.assert_close(crop[:, 3:-3, 3:-3], grown, atol=1e-5, rtol=0)
    [crop] = crop_boxes(image[None], [torch.tensor([[8.0, 10, 56, 58]])], 16)
    torch.testing.assert_close(crop, F.avg_pool2d(image[:, 10:58, 8:56], 3), atol=1e-5, rtol=0)
    assert crop_boxes(image[None], [torch.zeros(0, 4)], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(("reduction", "share"), [("sum", 2), ("mean", 5)])
def test_the_loss_is_one_minus_the_cosine(reduction: str, share: int):
    torch.manual_seed(0)
    rcnn, fast = torch.randn(2, 5, 16, dtype=torch.float64)
    cosines = [sum(a * b) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5) for a, b in zip(rcnn, fast, strict=True)]
    expected = sum(1 - cosine for cosine in cosines) / share
    torch.testing.assert_close(mimic_loss(rcnn, fast, 2, reduction), expected)
    assert mimic_loss(rcnn[:0], fast[:0], 2, reduction) == 0


def test_the_loss_has_the_gradient_of_its_values_and_is_finite_for_features_of_zeros():
    torch.manual_seed(0)
    rcnn, fast = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: mimic_loss(a, b, 2), (rcnn, fast))
    dead = torch.zeros(2, 4, requires_grad=True)
    loss = mimic_loss(dead, torch.ones(2, 4), 1)
    loss.backward()
    assert loss == 2
    assert dead.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_both_losses_are_the_papers_over_all_positive_samples(reduction: str):
    sampled, module = Sampled(), mimicking(mimic_reduction=reduction)
    found = sampled.losses(module)
    rcnn, fast = sampled.rcnn(), sampled.fast[sampled.positive]
    distances = 1 - (rcnn * fast).sum(1) / (rcnn.norm(dim=1) * fast.norm(dim=1))
    expected = distances.sum() / 2 if reduction == "sum" else distances.mean()
    torch.testing.assert_close(found["loss_mimic"], 0.1 * expected)
    log_probabilities = (rcnn @ module.cls_score.weight.T + module.cls_score.bias).log_softmax(1)
    wanted = -log_probabilities[range(4), [2, 1, 3, 1]].mean()
    torch.testing.assert_close(found["loss_mimic_cls"], 0.1 * wanted)


def test_the_weight_multiplies_both_losses():
    once, twice = (Sampled().losses(mimicking(mimic_weight=weight)) for weight in (0.1, 0.2))
    for name in ("loss_mimic", "loss_mimic_cls"):
        torch.testing.assert_close(twice[name], 2 * once[name])


def test_of_many_positives_so_many_of_each_image_are_drawn_as_the_seed_says():
    seen = []

    def features(patches: Tensor) -> Tensor:
        seen.append(patches)
        return torch.ones(len(patches), 48, dtype=torch.float64)

    sampled, module = Sampled(), mimicking(mimic_proposals=2)
    torch.manual_seed(0)
    arguments = (features, sampled.images, sampled.boxes, sampled.labels, sampled.fast)
    for seed in (0, 0, *range(20)):
        torch.manual_seed(seed)
        module(*arguments)
    assert {len(patches) for patches in seen} == {3}  # 2 of 3, and 1 of 1
    assert torch.equal(seen[0], seen[1])
    assert len({tuple(sorted(patches[:2].sum((1, 2, 3)).tolist())) for patches in seen}) == 3  # each pair of the 3


@pytest.mark.parametrize("detach", [False, True])
def test_the_crops_side_learns_from_the_cosine_unless_it_is_detached(detach: bool):
    sampled = Sampled()
    losses = sampled.losses(mimicking(mimic_detach=detach))
    weight, fast = sampled.layer.weight, sampled.fast
    one, other = torch.autograd.grad(losses["loss_mimic"], (fast, weight), allow_unused=True, retain_graph=True)
    assert (one[sampled.positive].abs().sum(1) > 0).all()
    assert (one[[1, 4, 6]] == 0).all()
    assert other is None if detach else other.abs().sum() > 0
    [of_classes] = torch.autograd.grad(losses["loss_mimic_cls"], weight)
    assert of_classes.abs().sum() > 0


def test_a_patch_of_224_pixels_is_pooled_from_a_map_of_14_by_14_at_stride_16():
    model = small().eval()
    patches = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found, maps = model.patch_features(patches), list(model.backbone(patches).values())
        assert maps[2].shape[-2:] == (14, 14)
        rois = torch.tensor([[0.0, 0, 0, 224, 224], [1, 0, 0, 224, 224]])
        pooled = roi_align(maps[2], rois, 7, 1 / 16, 2, aligned=True)
        torch.testing.assert_close(found, model.roi_heads.box_head(pooled))


def test_with_deformable_pooling_a_patch_is_pooled_by_the_pack_of_its_level(two: Any):
    model = small("faster_rcnn_r18_fpn_mdconv_c3-c5_mdpool", pool_channels=32)
    packs = model.roi_heads.box_roi_pool.layers
    for pack in packs:
        nn.init.normal_(pack.offset_fc[-1].weight, std=0.1)
    patches = torch.randn(2, 3, 224, 224)
    learns = torch.autograd.grad(
        model.patch_features(patches).sum(), [pack.offset_fc[-1].weight for pack in packs], allow_unused=True
    )
    assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in learns] == [
        False,
        False,
        True,
        False,
    ]
    sum(losses_of(model, images(), two).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_papers_own_detector_pools_a_patch_from_conv5_at_stride_16():
    model = small("faster_rcnn_r50_dcnv2", pool_channels=32).eval()
    patches = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, conv5 = model.patch_features(patches), model.backbone(patches)["conv5"]
        assert conv5.shape[-2:] == (14, 14)
        [pack] = model.roi_heads.box_roi_pool.layers
        pooled = pack(conv5, torch.tensor([[0.0, 0, 0, 224, 224]]))
        torch.testing.assert_close(found, model.roi_heads.box_head(pooled))


def test_a_detectors_losses_are_those_of_its_samples_cut_out(two: Any):
    model = small(mimic_proposals=500).double()
    calls: list[Any] = []
    model.mimic.register_forward_pre_hook(lambda _, args: calls.append(args))
    given = images(dtype=torch.float64)
    found = losses_of(model, given, two)
    [(_, _, boxes, labels, fast)] = calls
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    batch = F.pad((torch.stack(given) - mean) / std, (0, 16))
    assert {int(n) for label in labels for n in label} == {0, 1, 2, 3}
    positive = [label > 0 for label in labels]
    crops = roi_align(batch, [b[p] for b, p in zip(boxes, positive, strict=True)], 64, aligned=True)
    maps = model.backbone(crops)["0"]  # 64 pixels belong to stride 4
    whole = crops.new_tensor([[0, 0, 64, 64]])
    rcnn = model.roi_heads.box_head(roi_align(maps, [whole] * len(crops), 7, 1 / 4, 2, aligned=True))
    fast, classes = fast[torch.cat(positive)], torch.cat(labels)[torch.cat(positive)]
    torch.testing.assert_close(found["loss_mimic"], 0.1 * (1 - F.cosine_similarity(rcnn, fast)).sum() / 2)
    logits = F.linear(rcnn, model.mimic.cls_score.weight, model.mimic.cls_score.bias)
    torch.testing.assert_close(found["loss_mimic_cls"], 0.1 * F.cross_entropy(logits, classes))


@pytest.mark.parametrize("name", [FASTER, MASK])
def test_training_gives_every_parameter_a_gradient_and_leaves_the_other_losses_as_they_are(name: str, two: Any):
    model, plain = small(name), small(name, mimic=False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mimic.")})
    found, without = (losses_of(m, images(), two) for m in (model, plain))
    assert found.keys() - without.keys() == {"loss_mimic", "loss_mimic_cls"}
    assert all(torch.equal(found[key], value) for key, value in without.items())
    sum(found.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert model.mimic.cls_score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("empty", [1, 2])
def test_images_without_positives_add_nothing_and_every_parameter_keeps_a_gradient(empty: int, two: Any, target: Any):
    model = small()
    targets = [target() for _ in range(empty)] + two[empty:]
    found = losses_of(model, images(), targets)
    assert (found["loss_mimic"] > 0) == (found["loss_mimic_cls"] > 0) == (empty == 1)
    sum(found.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_detections_are_those_of_a_model_without_it_to_the_bit():
    model = small(MASK, box_score_thresh=0.0).eval()
    plain = small(MASK, box_score_thresh=0.0, mimic=False).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["mimic.cls_score.weight", "mimic.cls_score.bias"], [])
    with torch.no_grad():
        for ours, theirs in zip(model(images()), plain(images()), strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_crops_leave_the_running_statistics_alone(two: Any):
    model, plain = small(norm="bn", mimic_crops_at_once=3), small(norm="bn", mimic=False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mimic.")})
    for each in (model, plain):
        sum(losses_of(each, images(), two).values()).backward()
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert plain.backbone.body.bn1.num_batches_tracked == 1
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_crops_in_parts_give_the_same_losses_and_gradients(two: Any):
    models = small().double(), small(mimic_crops_at_once=3).double()
    for model in models:
        sum(losses_of(model, images(dtype=torch.float64), two).values()).backward()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_bfloat16_autocast_gives_losses_of_full_precision(two: Any):
    model = small()
    exact = losses_of(model, images(), two)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(model, images(), two)
    sum(found.values()).backward()
    assert found["loss_mimic"].dtype == found["loss_mimic_cls"].dtype == torch.float32
    torch.testing.assert_close(found["loss_mimic_cls"], exact["loss_mimic_cls"], rtol=0.05, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_weights_file_serves_models_with_and_without(tmp_path: Path):
    path, model = tmp_path / "last.safetensors", small()
    save_weights(model, path)
    assert "mimic" not in read_info(path).settings
    plain = create_model(FASTER, weights=path)
    assert plain.mimic is None
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    again = create_model(FASTER, weights=path, mimic=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert again.settings == model.settings
    with pytest.warns(UserWarning, match="the layers for 5 start anew"):
        assert create_model(FASTER, weights=path, mimic=True, num_classes=5).mimic.cls_score.out_features == 6
    save_weights(plain, path)
    torch.manual_seed(0)
    started = create_model(FASTER, weights=path, mimic=True)
    assert torch.equal(started.backbone.body.conv1.weight, model.backbone.body.conv1.weight)
    assert started.mimic.cls_score.weight.std() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("mimic", "yes"), ("mimic_proposals", 0), ("mimic_patch_size", 2.5), ("mimic_weight", -1.0),
     ("mimic_reduction", "max"), ("mimic_detach", 1), ("mimic_crops_at_once", 0)],
)  # fmt: skip
def test_a_setting_that_does_not_fit_is_named(name: str, value: Any):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        small(**{name: value})


def test_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.strip() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)[0]


def _one_step(rank: int, port: int, folder: str) -> None:
    """A process of a run whose second one has no positives."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = small(mimic_crops_at_once=2)
    parallel = nn.parallel.DistributedDataParallel(model)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    torch.manual_seed(rank)
    losses = parallel([torch.rand(3, 64, 80)], [{key: value[rank:] for key, value in target.items()}])
    assert (losses["loss_mimic"] == 0) == (rank == 1)
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_stay_alike_also_where_one_has_no_positives(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_step, (port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    fresh = small().state_dict()
    assert not torch.equal(one["mimic.cls_score.weight"], fresh["mimic.cls_score.weight"])
