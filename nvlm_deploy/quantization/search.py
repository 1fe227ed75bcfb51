"""Choose the scales of one group of linears: AWQ, SmoothQuant, GPTQ or plain maxima.

Shapes: N output features, K input features, J quantization groups per row, R sampled inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS, Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization import modelopt
from nvlm_deploy.quantization.formats import W4A8
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import Storage

_LARGEST_CODE = {"int8-static": 127.0, "fp8": E4M3_MAX, "nvfp4": 6 * E4M3_MAX}
_FP16_MAX = float(torch.finfo(torch.float16).max)


@dataclass(slots=True)
class GroupScales:
    """What was chosen for a group.

    scale_K: inputs are multiplied with it and weights divided by it; None for no such scale. folds: the norm
    before does the multiplication. input_scale: float32 () of static activations. amax: largest magnitude to
    keep by linear, in the granularity of its format. scale_2: the second level's scale, which linears share
    whose codes do not depend on it. adjusted: weights that GPTQ changed, float32 [N, K].
    """

    scale_K: Tensor | None = None
    folds: bool = False
    input_scale: Tensor | None = None
    amax: dict[str, Tensor] = field(default_factory=dict)
    scale_2: Tensor | None = None
    adjusted: dict[str, Tensor] = field(default_factory=dict)


class ScaleSearch:
    """Searches the scales of groups of linears, with one FP32 weight in memory at a time."""

    def __init__(
        self,
        recipe: Recipe,
        storages: Mapping[str, Storage],
        weights: ModelWeights,
        device: torch.device,
    ) -> None:
        """`storages`: by parameter name, of at least the linears' weights."""
        self.recipe, self.storages, self.weights, self.device = recipe, storages, weights, device

    def quantized(self, group: LinearGroup) -> tuple[str, ...]:
        """The linears of a group that are quantized."""
        return tuple(name for name in group.linears if self.storages[f"{name}.weight"].quantized)

    def weight(self, linear: str, scales: GroupScales | None = None) -> Tensor:
        """Read a weight, float32 [N, K], divided by the group's scale if there is one."""
        if scales is not None and linear in scales.adjusted:
            return scales.adjusted[linear]
        weight_NK = self.weights.read(f"{linear}.weight", torch.float32).to(self.device)
        if scales is not None and scales.scale_K is not None:
            weight_NK.mul_(1 / scales.scale_K)
        return weight_NK

    def search(self, group: LinearGroup, seen: Observed | None) -> GroupScales:
        """Choose everything for one group.

        Args:
            seen: the group's inputs; None if the recipe needs no calibration.

        Raises:
            NvlmError: the linears of the group saw nothing, or something that is no number.
        """
        linears = self.quantized(group)
        storages = {self.storages[f"{name}.weight"] for name in linears}
        if not linears:
            return GroupScales()
        if seen is not None:
            _check_seen(linears, seen)
        folds = group.norm is not None and len(storages) == 1 and len(linears) == len(group.linears)
        scale_K = self._shared_scale(linears, seen)
        if scale_K is not None:
            scale_K = self._as_stored(scale_K, group.norm if folds else None)
        scales = GroupScales(scale_K, folds and scale_K is not None)
        scales.input_scale = self._input_scale(linears[0], scales, seen)
        for name in linears:
            scales.amax[name] = self._amax(name, scales, seen)
        self._unify(linears, scales)
        return scales

    def _shared_scale(self, linears: tuple[str, ...], seen: Observed | None) -> Tensor | None:
        """The mean of what each linear would choose alone, as ModelOpt's exporter shares scales."""
        alone = []
        for name in linears:
            storage = self.storages[f"{name}.weight"]
            if storage.algorithm == "awq" and seen is not None:
                rows_RK = seen.rows_RK()
                alone.append(
                    modelopt.awq_scale(self.weight(name), rows_RK, storage.group_size, self.recipe.awq)
                )
            elif storage.algorithm == "smoothquant" and seen is not None:
                alpha = self.recipe.smoothquant.alpha
                alone.append(modelopt.smoothquant_scale(self.weight(name), seen.amax_K, alpha))
        if not alone:
            return None
        # Some engines keep these in FP16, where more would be infinite.
        return torch.stack(alone).mean(0).clamp(1 / _FP16_MAX, _FP16_MAX)

    def _as_stored(self, scale_K: Tensor, norm: str | None) -> Tensor:
        """Round a scale to what readers of the checkpoint will multiply with, so that weights undo just that.

        It is stored in BF16, or as the product with a norm's weight, in that weight's precision.
        """
        if norm is None:
            return scale_K.bfloat16().float()
        name = f"{norm}.weight"
        stored_K = self.weights.read(name).to(self.device)
        norm_K = stored_K.float()
        folded_K = (norm_K * scale_K).to(stored_K.dtype).float()
        return torch.where(norm_K * folded_K == 0, scale_K, folded_K / norm_K)

    def _input_scale(self, linear: str, scales: GroupScales, seen: Observed | None) -> Tensor | None:
        activations = self.storages[f"{linear}.weight"].activations
        if activations not in STATIC_ACTIVATIONS:
            return None
        assert seen is not None, "the plan asks for calibration"
        amax_K = seen.amax_K if scales.scale_K is None else seen.amax_K * scales.scale_K
        # An input that is always zero may have any scale but zero.
        amax = amax_K.max().clamp(min=torch.finfo(torch.float32).tiny)
        return amax / amax.new_tensor(_LARGEST_CODE[activations])

    def _amax(self, linear: str, scales: GroupScales, seen: Observed | None) -> Tensor:
        storage = self.storages[f"{linear}.weight"]
        weight_NK = self.weight(linear, scales)
        codec = storage_codec(storage)
        amax = codec.amax(weight_NK)
        if seen is None:
            return amax
        if storage.algorithm == "awq" and self.recipe.awq.clip:
            rows_RK = seen.rows_RK()
            if scales.scale_K is not None:
                rows_RK *= scales.scale_K
            return modelopt.clipped_amax(weight_NK, rows_RK, storage.group_size)
        if storage.algorithm == "gptq":
            scales.adjusted[linear] = modelopt.gptq_weights(
                weight_NK, seen.rows_RK(), storage.group_size, self.recipe.gptq
            )
        return amax

    def _unify(self, linears: tuple[str, ...], scales: GroupScales) -> None:
        """Give linears that engines fuse one scale where the format has one per matrix."""
        codecs = {storage_codec(self.storages[f"{name}.weight"]) for name in linears}
        if len(codecs) > 1:
            return
        amaxes = [scales.amax[name] for name in linears]
        if isinstance(codecs.pop(), W4A8):
            scales.scale_2 = torch.stack([amax.max() for amax in amaxes]).max() / E4M3_MAX
        elif not any(amax.dim() for amax in amaxes):
            scales.amax.update(dict.fromkeys(linears, torch.stack(amaxes).max()))


def _check_seen(linears: tuple[str, ...], seen: Observed) -> None:
    if not seen.amax_CK.isfinite().all():
        raise NvlmError(
            f"the inputs of {linears[0]} overflow while the calibration set is shown",
            hint="check the checkpoint with nvlm-build run on the recipe fp32",
        )
