"""Detectors' speed and memory beside the published figures and the regular networks: ``torchdcn bench models``."""

import sys

from torchdcn.cli import main

if __name__ == "__main__":
    main(["bench", "models", *sys.argv[1:]])
