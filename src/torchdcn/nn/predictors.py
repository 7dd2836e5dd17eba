"""The layers that predict offsets and masks. Each starts in its own way, also when something resets it alone.

Tools that initialise a network (FSDP on the meta device, Lightning) call ``reset_parameters`` of one module after the
other, in an order of their own: what a pack would do to its children, the children's own reset could undo. They are
printed under their parents' names, and count as ``nn.Conv2d`` and ``nn.Linear`` for whoever asks.
"""

from __future__ import annotations

from torch import nn


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero."""

    def reset_parameters(self) -> None:
        """Sets weight and bias to zero."""
        super().reset_parameters()  # for its random numbers only: a seed gives the layers after it what it always gave
        _zero(self)

    def _get_name(self) -> str:
        return "Conv2d"


class ZeroLinear(nn.Linear):
    """A fully connected layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Sets weight and bias to zero."""
        super().reset_parameters()  # see ZeroConv2d
        _zero(self)

    def _get_name(self) -> str:
        return "Linear"


class GaussianLinear(nn.Linear):
    """A fully connected layer that starts from a Gaussian of standard deviation 0.01, without bias."""

    def reset_parameters(self) -> None:
        """Draws the weight, and sets the bias to zero."""
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def _get_name(self) -> str:
        return "Linear"


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)
