"""Deformable convolution beside the dense one and its peers: ``make bench``, which is ``torchdcn bench ops``."""

import sys

from torchdcn.cli import main

if __name__ == "__main__":
    main(["bench", "ops", *sys.argv[1:]])
