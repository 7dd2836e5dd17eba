"""Tile sizes of the Triton kernels: by kernel, dtype, architecture and shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

FORWARD, DATA, WEIGHT = "forward", "data_gradients", "weight_gradient"
INTERPRETED = 0  # an architecture of its own


@dataclass(frozen=True)
class Block:
    """What one program works on at a time, and the warps that share the work."""

    positions: int
    outputs: int
    channels: int
    warps: int = 4
    stages: int = 2  # of the pipeline that brings plain operands to shared memory

    def fitted(self, outputs: int, channels: int, most: int) -> Block:
        """No larger than the problem, with `most` channels; 16 is the least that the tensor cores take."""
        return replace(
            self,
            outputs=min(self.outputs, _power_of_two(outputs)),
            channels=min(self.channels, _power_of_two(channels), most),
        )


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


# From large tiles, which share a sample among more outputs, to small ones, of which there are more to share out among
# the processors. By kernel, by how it multiplies (16 bits, float32 by "tf32" or "ieee", float64), and by the least
# architecture. None of them spills registers, and none needs more shared memory than the smallest of its chips have.
TABLE: dict[tuple[str, str], dict[int, tuple[Block, ...]]] = {
    (FORWARD, "16 bits"): {0: (Block(128, 128, 32, warps=8), Block(64, 128, 32), Block(32, 64, 32))},
    (FORWARD, "tf32"): {
        0: (Block(64, 128, 16, warps=8), Block(64, 64, 16), Block(32, 64, 32)),
        90: (Block(64, 128, 32, warps=8), Block(64, 64, 32), Block(32, 64, 32)),
    },
    (FORWARD, "ieee"): {
        0: (Block(64, 64, 16, warps=8), Block(32, 32, 16)),
        90: (Block(64, 64, 16, warps=8), Block(32, 64, 16)),
    },
    (FORWARD, "float64"): {0: (Block(32, 32, 16),)},
    (DATA, "16 bits"): {
        0: (Block(64, 64, 32, warps=8), Block(32, 64, 32)),
        90: (Block(64, 64, 64, warps=8), Block(32, 64, 64)),
    },
    (DATA, "tf32"): {
        0: (Block(64, 32, 32, warps=8), Block(32, 32, 32)),
        90: (Block(64, 32, 64, warps=8), Block(32, 32, 64)),
    },
    (DATA, "ieee"): {0: (Block(32, 16, 16),)},
    (DATA, "float64"): {0: (Block(32, 16, 16, warps=8),)},
    (WEIGHT, "16 bits"): {0: (Block(64, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "tf32"): {0: (Block(32, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "ieee"): {
        0: (Block(16, 64, 32, warps=8), Block(16, 32, 32)),
        100: (Block(16, 64, 32, warps=8),),
    },
    (WEIGHT, "float64"): {0: (Block(16, 32, 16),)},
}
INTERPRETED_BLOCK = Block(64, 16, 16)  # small, so that a small test has several tiles of everything


def candidates(
    kernel: str, kind: str, architecture: int, outputs: int, channels: int, fixed: bool = False
) -> list[Block]:
    """The blocks to choose from, each once, for so many outputs of a group and channels of a segment.

    Channels that can't be read 16 bytes at a time need more registers, and so do sums in fixed point.
    """
    if architecture == INTERPRETED:
        return [INTERPRETED_BLOCK]
    by_architecture = TABLE[kernel, kind]
    most = 16 if channels % 8 or fixed else 128
    blocks = by_architecture[max(least for least in by_architecture if least <= architecture)]
    return list(dict.fromkeys(block.fitted(outputs, channels, most) for block in blocks))
