"""Makes the README's picture from what ``make demo`` left in runs/demo: ``.venv/bin/python docs/make_pictures.py``."""

from pathlib import Path

import numpy as np
from PIL import Image

from torchdcn.plotting import detections_grid

DEMO = Path("runs/demo")
PICTURE = Path("docs/pictures/first-light.png")


def main() -> None:
    found = sorted((DEMO / "detections").glob("*.png"))[:4]
    sampled = sorted(DEMO.glob("sampling-*.png"))[:2]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in (*found, *sampled)]
    grid = detections_grid(pictures, columns=3, width=1500)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
