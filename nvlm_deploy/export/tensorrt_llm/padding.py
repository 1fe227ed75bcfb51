"""Widths with the zeros that let matrices be divided among GPUs.

The decoder of NVLM-D-72B is 29,568 = 231 x 128 wide inside its MLP: groups of 128 cannot be split in two.
With 128 features more, whose weights are zero, it is 232 x 128, and every number that it computes stays
what it was: silu(0) x 0 = 0 goes into the last matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nvlm_deploy.export.tensorrt_llm.schemes import Form


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def padded_intermediate(width: int, mlp_forms: Iterable[Form], tp: int) -> int:
    """The inner width of the MLPs that all their matrices can be divided by on `tp` GPUs."""
    multiple = math.lcm(*{n for form in mlp_forms for n in form.multiples})
    return round_up(width, multiple * tp)


def padded_vocabulary(size: int, tp: int) -> int:
    """Rows of `lm_head` and of a divided embedding (TensorRT-LLM `pad_vocab_size`)."""
    return round_up(size, tp)
