"""Makes the README's picture: ``python docs/make_pictures.py``, about 8 minutes of two CPU cores.

It is ``make demo`` trained twice as long; nothing is picked: the first held-out scenes, the surest detections.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from torchdcn.demo import DemoSettings, run_demo
from torchdcn.plotting import detections_grid

RUN = Path("runs/pictures")
PICTURE = Path("docs/pictures/first-light.png")
SETTINGS = DemoSettings(epochs=8)


def main() -> None:
    run_demo(RUN, Console(), settings=SETTINGS)
    found = sorted((RUN / "detections").glob("*.png"))[:4]
    sampled = sorted(RUN.glob("sampling-*.png"))[:2]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in (*found, *sampled)]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(detections_grid(pictures, columns=3, width=1200)).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
