"""Tile sizes: what one program of a Triton kernel works on at a time, in Triton's words its block.

Each operator has a table of them beside its launches, by kernel, dtype and architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

INTERPRETED = 0
"""The architecture of Triton's interpreter."""


@dataclass(frozen=True)
class Block:
    """What one program works on at a time, and the warps that share the work."""

    positions: int
    outputs: int  # 0 for a kernel that multiplies nothing
    channels: int
    warps: int = 4
    stages: int = 2  # of the pipeline that brings plain operands to shared memory
    # At most, of a thread. 0 leaves it to the assembler; some versions spill a few rather than run fewer programs.
    registers: int = 0

    def fit_product(self, outputs: int, channels: int, most: int) -> Block:
        """Shrinks the block to the problem, with at most `most` channels; tensor cores take no less than 16."""
        return replace(
            self,
            outputs=min(self.outputs, _power_of_two(outputs)),
            channels=min(self.channels, _power_of_two(channels), most),
        )

    def fit_bins(self, bins: int, channels: int) -> Block:
        """Shrinks the block to the channels there are, and takes more bins of a box instead.

        Where channels can't be read 16 bytes at a time, a thread plans several bins: then an eighth of these.
        """
        fitted = min(self.channels, _power_of_two(channels))
        positions = max(1, self.positions * self.channels // fitted // (8 if channels % 16 else 1))
        return replace(self, positions=min(positions, 1 << (bins - 1).bit_length()), channels=fitted)


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


Table = dict[tuple[str, str], dict[int, tuple[Block, ...]]]
"""Blocks from large to small, by kernel, by kind of arithmetic, and by the least architecture that uses them."""


def blocks_for(table: Table, kernel: str, kind: str, architecture: int) -> tuple[Block, ...]:
    """A kernel's blocks on an architecture: the entry of the newest one that is not newer."""
    by_architecture = table[kernel, kind]
    return by_architecture[max(least for least in by_architecture if least <= architecture)]
