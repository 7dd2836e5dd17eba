"""What docs/data.md shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from torchdcn.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def harm(root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    entries = content["annotations"]
    entries[3]["bbox"][2] = 400
    entries[5]["area"] = 0
    entries[7]["category_id"] = 99
    entries[9]["id"] = entries[8]["id"]
    entries[11]["bbox"] = [3, 4, 0, 5]
    entries[13]["segmentation"] = {"size": [50, 50], "counts": [2500]}
    file.write_text(json.dumps(content))
    (root / "train" / "000003.jpg").unlink()
    picture = root / "train" / "000004.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    (root / "train" / "extra.jpg").write_bytes(b"x")


def test_the_page_runs_and_the_check_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})  # noqa: S102  # our own page
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*  # (.*)$", code, re.MULTILINE)
    harm(Path("scenes"))
    [shown] = re.findall(r"```console\n\$ torchdcn train --data scenes --check\n(.*?)```", PAGE, re.DOTALL)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--data", "scenes", "--check"])
    assert caught.value.code == 1
    reason = r"can't be read as an image: .*"  # in Pillow's words, which change
    assert re.sub(reason, "", capsys.readouterr().out) == re.sub(reason, "", shown)
