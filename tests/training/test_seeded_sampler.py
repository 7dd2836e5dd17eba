import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from torchdcn.training.seeded_sampler import SeededSampler


def sampler(seeds):
    seeded = SeededSampler(BalancedPositiveNegativeSampler(8, 0.5), stage=1)
    seeded.seeds = seeds
    return seeded


def test_what_is_drawn_for_an_image_does_not_depend_on_the_others():
    labels = [torch.randint(0, 2, (50,), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    together = sampler([5, 6, 7])(labels)
    for image, seed in enumerate((5, 6, 7)):
        torch.rand(image)  # elsewhere other things were drawn before
        alone = sampler([seed])([labels[image]])
        for all_of_kind, one in zip(together, alone, strict=True):
            assert torch.equal(all_of_kind[image], one[0])
            assert one[0].sum() == 4


def test_other_seeds_draw_others_and_the_global_generator_is_left_alone():
    labels = [torch.ones(100, dtype=torch.int64)] * 2
    torch.manual_seed(3)
    positives, _ = sampler([1, 2])(labels)
    drawn = torch.rand(2)
    assert not torch.equal(*positives)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)
