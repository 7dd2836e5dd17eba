import pytest

from torchdcn.data import make_synthetic


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Six tiny scenes to train on and two to evaluate on."""
    return make_synthetic(tmp_path_factory.mktemp("scenes") / "coco", train=6, val=2, size=64, seed=0)
