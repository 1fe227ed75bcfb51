"""The one door to NVIDIA ModelOpt: its searches, one matrix at a time.

Whole-model calibration needs the whole model. Every search here sees one matrix and a sample of its
inputs, which is all that they use, and may overwrite the matrix. ModelOpt prints on stdout; here that goes
to the log.

Shapes: N output features, K input features, J groups per row, G columns per group, R sampled inputs, B groups
of the whole matrix, b of one chunk.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nvlm_deploy.config.recipe import AwqSettings, GptqSettings
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization.formats.codec import absolute_max, row_chunks, scales_of
from nvlm_deploy.quantization.formats.integers import INT4_MAX

logger = logging.getLogger(__name__)

# Inputs pass through a matrix in pieces of at most so many rows, which bounds the memory of its outputs. The
# matrix is quantized anew for every piece, so few pieces are fast.
_ROWS_PER_PASS = 1024
# Matrices of so many numbers are not left to the garbage collector's own pace.
_LARGE = 1 << 24
# The name of our arithmetic in ModelOpt's quantizers, and what ModelOpt takes for a group of zeros.
_BACKEND = "nvlm_deploy_int4"
_ZERO = 2.0**-24


def awq_scale(weight_NK: Tensor, rows_RK: Tensor, group_size: int, settings: AwqSettings) -> Tensor:
    """Search AWQ's scale: what inputs are multiplied with, and weights divided by.

    (modelopt.torch.quantization.model_calib.awq_lite; arXiv 2306.00978.)

    Returns:
        float32 [K], near one in the geometric mean.
    """
    algorithm = {"method": "awq_lite", "alpha_step": settings.alpha_step}
    linear = _quantized(weight_NK, rows_RK, _int4_weights(group_size), algorithm)
    return _take_scale(linear)


def smoothquant_scale(weight_NK: Tensor, amax_K: Tensor, alpha: float) -> Tensor:
    """Return SmoothQuant's scale for inputs of the magnitudes `amax_K`.

    (modelopt.torch.quantization.model_calib.smoothquant; arXiv 2211.10438.)

    Returns:
        float32 [K]: inputs are multiplied with it, weights divided by it.
    """
    config = [
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": -1}},
    ]
    # The search looks at the inputs' range alone, which one row with every channel's maximum has, too.
    algorithm = {"method": "smoothquant", "alpha": alpha}
    linear = _quantized(weight_NK, amax_K.unsqueeze(0), config, algorithm)
    return _take_scale(linear)


def gptq_weights(
    weight_NK: Tensor, rows_RK: Tensor, amax_NJ: Tensor, group_size: int, settings: GptqSettings
) -> Tensor:
    """Round to INT4 column by column, each one's error compensated by the columns behind it.

    (modelopt.torch.quantization.utils.calib_utils; arXiv 2210.17323.) ModelOpt's own `gptq` quantizes the
    whole matrix for every column of it, which would take hours for one matrix of NVLM-D-72B; its update is
    given a function here that rounds the one column. Memory: four matrices [K, K].

    Returns:
        float32 [N, K] on the grid of the groups, whose largest magnitudes are `amax_NJ`.
    """
    columns = weight_NK.shape[1]
    with _quiet(), torch.no_grad():
        calib_utils = _import("modelopt.torch.quantization.utils.calib_utils")
        hessian_KK = torch.zeros(columns, columns, device=weight_NK.device)
        hessian_KK, _ = calib_utils.update_hessian(rows_RK, hessian_KK, 0)
        inverse_KK = calib_utils.compute_hessian_inverse(hessian_KK, weight_NK, settings.damping)
        del hessian_KK
        rounded = _NextColumn(scales_of(amax_NJ, INT4_MAX), group_size)
        block_size = math.gcd(settings.block_size, columns)
        calib_utils.gptq_blockwise_update(weight_NK, inverse_KK, block_size, rounded)
    return weight_NK


class _NextColumn:
    """Rounds the first column of a matrix, then the second, and so on: the order in which GPTQ asks."""

    def __init__(self, scale_NJ: Tensor, group_size: int) -> None:
        self._scale_NJ, self._group_size, self._column = scale_NJ, group_size, 0

    def __call__(self, weight_NK: Tensor) -> Tensor:
        """Return [N, K] of which only that column is meant; it takes the memory of one."""
        scale_N = self._scale_NJ[:, self._column // self._group_size]
        codes_N = (weight_NK[:, self._column] / scale_N).round_().clamp_(-INT4_MAX - 1, INT4_MAX)
        self._column += 1
        return codes_N.mul_(scale_N).unsqueeze(1).expand_as(weight_NK)


def _int4_weights(group_size: int) -> list[dict[str, Any]]:
    blocks = {-1: group_size, "type": "static"}
    weights = {"num_bits": 4, "block_sizes": blocks, "backend": _BACKEND}
    return [
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
        {"quantizer_name": "*input_quantizer", "enable": False},
    ]


def _fake_int4(weight_BG: Tensor, _quantizer: object) -> Tensor:
    """Do to the groups of a matrix what ModelOpt does (`tensor_quant._tensor_quant`), in chunks.

    Its own makes several copies of the whole matrix on the way.
    """
    rounded_BG = torch.empty_like(weight_BG)
    for part in row_chunks(*weight_BG.shape):
        amax_b1 = absolute_max(weight_BG[part], dim=-1).unsqueeze(-1)
        scale_b1 = amax_b1.new_tensor(INT4_MAX) / amax_b1
        zero_b1 = amax_b1 <= _ZERO
        codes_bG = (weight_BG[part] * scale_b1.masked_fill(zero_b1, 0)).round_()
        codes_bG.clamp_(-INT4_MAX - 1, INT4_MAX)
        torch.div(codes_bG, scale_b1.masked_fill_(zero_b1, 1), out=rounded_BG[part])
    return rounded_BG


def _quantized(
    weight_NK: Tensor, rows_RK: Tensor, config: list[dict[str, Any]], algorithm: dict[str, Any]
) -> Any:
    """Return a linear that ModelOpt has quantized; `weight_NK` is given to it, and may change."""
    rows, columns = weight_NK.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight_NK, requires_grad=False)
    # Of nearly the same size, because ModelOpt takes the mean over the pieces' means.
    pieces = rows_RK.tensor_split(math.ceil(len(rows_RK) / _ROWS_PER_PASS))
    holder = nn.ModuleDict({"linear": linear})

    def show(model: nn.Module) -> None:
        for piece_RK in pieces:
            model.get_submodule("linear")(piece_RK)

    with _quiet(), torch.no_grad():
        mtq = _import("modelopt.torch.quantization")
        _register_backend()
        mtq.quantize(holder, {"quant_cfg": config, "algorithm": algorithm}, show)
    return holder["linear"]


def _take_scale(linear: Any) -> Tensor:
    """Return the scale that a search has left, float32 [K], and let go of everything else of its linear."""
    scale: Tensor = linear.input_quantizer.pre_quant_scale
    scale_K = scale.float().reshape(-1).clone()
    if linear.weight.numel() >= _LARGE:
        # What ModelOpt converts refers to itself in a circle, and the collector counts objects, not bytes.
        linear.weight = None
        gc.collect()
    return scale_K


def _register_backend() -> None:
    quantizers = _import("modelopt.torch.quantization.nn.modules.tensor_quantizer")
    if not quantizers.is_registered_quant_backend(_BACKEND):
        quantizers.register_quant_backend(_BACKEND, _fake_int4)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnsuitableError(
            f"calibrated recipes need NVIDIA ModelOpt, and {error.name} is not installed",
            hint="pip install 'nvlm-deploy[modelopt]'",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ModelOpt's messages off stdout, and its warnings about versions to itself."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for line in said.getvalue().splitlines():
        level = logging.WARNING if line.startswith("Warning") else logging.DEBUG
        logger.log(level, "modelopt: %s", line)
