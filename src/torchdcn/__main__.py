"""``python -m torchdcn``: the same program as ``torchdcn``."""

from .cli import main

if __name__ == "__main__":
    main()
