"""FLOPs of the operators for ``torch.utils.flop_counter.FlopCounterMode``, which counts 0 without a formula.

As for torch's own operators, matrix products count, a multiplication and an addition as two. Here bilinear sampling
counts too, 8 for each value: four pixels by four weights, into which the mask is folded. Where the reference runs, its
products are counted as torch counts them, and its sampling, made of elementwise steps, is not.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .dispatch import KernelOperator

    Formula = Callable[[SimpleNamespace, Any], int]  # of a call's arguments, by name, and of its output

_log = logging.getLogger("torch.utils.flop_counter")
_log.disabled = True  # it warns where there is no Triton, and an import of torchdcn prints nothing
from torch.utils.flop_counter import register_flop_formula  # noqa: E402

_log.disabled = False

FLOPS_OF_SAMPLE = 8
"""Of one sampled value: four products and four sums."""


def count_flops(operator: KernelOperator, forward: Formula, backward: Formula) -> None:
    """Tells torch's counter the formulas of an operator and of its gradients."""
    names = operator.argument_names
    _register(operator.overload, names, forward)
    _register(operator.backward_overload, ("grad_output", *names, "output_mask"), backward)


def _register(overload: Any, names: Sequence[str], formula: Formula) -> None:
    def count(*arguments: Any, out_val: Any = None, **named: Any) -> int:
        return formula(SimpleNamespace(**dict(zip(names, arguments, strict=False)), **named), out_val)

    register_flop_formula(overload.overloadpacket, get_raw=True)(count)
