"""What docs/training.md shows is what happens."""

import dataclasses
import re
from pathlib import Path

import pytest

from torchdcn.training import TrainConfig
from torchdcn.training.config import RECIPES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "training.md").read_text()
OTHERS = {
    "--check", "--config", "--resume", "--set", "--help",  # of torchdcn train
    "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts", "--shutdown-timeout",
    "--logdir",
}  # fmt: skip


def test_the_python_on_the_page_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})  # noqa: S102  # our own page
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*  # (.*)$", code, re.MULTILINE)


def test_every_flag_on_the_page_is_there():
    section = PAGE.partition("\n## Nuclei")[0]  # whose commands are other programs' too
    known = OTHERS | {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainConfig)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section)) <= known


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_recipes_has_their_figures(recipe):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    start = next(number for number, row in enumerate(rows) if "--recipe scratch" in row[1])
    table = {}
    for name, *cells in rows[start : start + 11]:
        cell = cells[list(RECIPES).index(recipe)]
        table[name] = cells[1] if cell.startswith("the same") else cell  # as in the column before
    config = TrainConfig("synthetic", "mask_rcnn_r50_fpn", "runs/try", recipe=recipe)
    assert float(table["learning rate"].split()[0]) == config.lr
    assert float(table["of offset convolutions"].split()[0]) == config.offset_lr_factor
    assert float(table["weight decay"].split(",")[0]) == config.weight_decay
    epochs, _, drops = table["epochs; the rate falls to a tenth"].partition("; ")
    assert int(epochs) == config.epochs
    if recipe != "scratch":
        shares = [round(share * config.epochs) for share in config.lr_drops]
        assert drops == f"after {shares[0]} and {shares[1]}"
        assert table["warm-up"] == f"{config.warmup_steps} steps from 0.001 x"
        assert table["sides of a picture"].startswith(f"{config.min_size} to {config.max_size}")
