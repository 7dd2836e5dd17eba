"""Tile sizes of the Triton kernels: by kernel, dtype, architecture and shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

FORWARD, DATA, WEIGHT = "forward", "data_gradients", "weight_gradient"
POOL, BINS, SPREAD = "pool", "bin_gradients", "input_gradient"
INTERPRETED = 0  # an architecture of its own


@dataclass(frozen=True)
class Block:
    """What one program works on at a time, and the warps that share the work."""

    positions: int
    outputs: int  # 0 for a kernel that multiplies nothing
    channels: int
    warps: int = 4
    stages: int = 2  # of the pipeline that brings plain operands to shared memory
    # What a thread may have at most; 0 leaves it to the assembler, of which some versions rather spill a few than run
    # fewer programs at a time.
    registers: int = 0

    def fitted(self, outputs: int, channels: int, most: int) -> Block:
        """No larger than the problem, with `most` channels; 16 is the least that the tensor cores take."""
        return replace(
            self,
            outputs=min(self.outputs, _power_of_two(outputs)),
            channels=min(self.channels, _power_of_two(channels), most),
        )

    def pooling(self, bins: int, channels: int) -> Block:
        """No more channels than there are; then as many bins of a box as make up for it.

        Channels that can't be read 16 bytes at a time make threads plan several bins: then an eighth of these.
        """
        fitted = min(self.channels, _power_of_two(channels))
        positions = max(1, self.positions * self.channels // fitted // (8 if channels % 16 else 1))
        return replace(self, positions=min(positions, 1 << (bins - 1).bit_length()), channels=fitted)


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


# From large tiles, which share a sample among more outputs, to small ones, of which there are more to share out among
# the processors. By kernel, by how it multiplies (16 bits, float32 by "tf32" or "ieee", float64), and by the least
# architecture. None of them spills registers, and none needs more shared memory than the smallest of its chips have.
TABLE: dict[tuple[str, str], dict[int, tuple[Block, ...]]] = {
    (FORWARD, "16 bits"): {0: (Block(128, 128, 32, warps=8), Block(64, 128, 32), Block(32, 64, 32, registers=255))},
    (FORWARD, "tf32"): {
        0: (Block(64, 128, 16, warps=8), Block(64, 64, 16), Block(32, 64, 32)),
        90: (Block(64, 128, 32, warps=8, registers=255), Block(64, 64, 32), Block(32, 64, 32)),
    },
    (FORWARD, "ieee"): {
        0: (Block(64, 64, 16, warps=8), Block(32, 32, 16)),
        90: (Block(64, 64, 16, warps=8), Block(32, 64, 16)),
    },
    (FORWARD, "float64"): {0: (Block(32, 32, 16, registers=255),)},
    (DATA, "16 bits"): {
        0: (Block(64, 64, 32, warps=8), Block(32, 64, 32)),
        90: (Block(64, 64, 64, warps=8), Block(32, 64, 64)),
    },
    (DATA, "tf32"): {
        0: (Block(64, 32, 32, warps=8), Block(32, 32, 32, registers=255)),
        90: (Block(64, 32, 64, warps=8), Block(32, 32, 64)),
    },
    (DATA, "ieee"): {0: (Block(32, 16, 16),)},
    (DATA, "float64"): {0: (Block(32, 16, 16, warps=8),)},
    (WEIGHT, "16 bits"): {0: (Block(64, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "tf32"): {0: (Block(32, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "ieee"): {
        0: (Block(16, 64, 32, warps=8), Block(16, 32, 32)),
        100: (Block(16, 64, 32, warps=8, registers=255),),
    },
    (WEIGHT, "float64"): {0: (Block(16, 32, 16),)},
}
INTERPRETED_BLOCK = Block(64, 16, 16)  # small, so that a small test has several tiles of everything

# A warp to each bin: its threads read 4 or 8 channels each, and plan the bin's samples each for itself. Few boxes get
# programs of one bin, of which there are more. What a thread reads is laid out as what it writes, or values would
# pass through shared memory at every sample; additions of 16 bytes at once, as sm_90 has them, set 4 channels there.
POOLING: dict[tuple[str, str], dict[int, tuple[Block, ...]]] = {
    (POOL, "16 bits"): {0: (Block(4, 0, 256), Block(1, 0, 256, warps=1))},
    (POOL, "float32"): {0: (Block(1, 0, 256, warps=1),)},
    (POOL, "float64"): {0: (Block(1, 0, 128, warps=1),)},
    (BINS, "16 bits"): {
        0: (Block(1, 0, 256, warps=1),),
        90: (Block(4, 0, 256), Block(1, 0, 256, warps=1)),
        100: (Block(4, 0, 256, registers=255), Block(1, 0, 256, warps=1)),
    },
    (BINS, "float32"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (BINS, "float64"): {0: (Block(1, 0, 64, warps=1),)},
    (SPREAD, "16 bits"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (SPREAD, "float32"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (SPREAD, "float64"): {0: (Block(1, 0, 128, warps=1),)},
    (SPREAD, "fixed"): {0: (Block(1, 0, 64, warps=1),)},
}
INTERPRETED_POOLING = Block(16, 0, 16)


def candidates(
    kernel: str, kind: str, architecture: int, outputs: int, channels: int, fixed: bool = False
) -> list[Block]:
    """The blocks to choose from, each once, for so many outputs of a group and channels of a segment.

    Channels that can't be read 16 bytes at a time need more registers, and so do sums in fixed point.
    """
    if architecture == INTERPRETED:
        return [INTERPRETED_BLOCK]
    most = 16 if channels % 8 or fixed else 128
    blocks = _newest(TABLE[kernel, kind], architecture)
    return list(dict.fromkeys(block.fitted(outputs, channels, most) for block in blocks))


def pooling_candidates(kernel: str, kind: str, architecture: int, bins: int, channels: int) -> list[Block]:
    """The blocks to choose from for boxes of so many bins, each once."""
    if architecture == INTERPRETED:
        return [INTERPRETED_POOLING]
    blocks = _newest(POOLING[kernel, kind], architecture)
    return list(dict.fromkeys(block.pooling(bins, channels) for block in blocks))


def _newest(by_architecture: dict[int, tuple[Block, ...]], architecture: int) -> tuple[Block, ...]:
    return by_architecture[max(least for least in by_architecture if least <= architecture)]
