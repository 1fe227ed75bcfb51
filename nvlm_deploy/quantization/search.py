"""Choose the scales of one group of linears: AWQ, SmoothQuant, GPTQ or plain maxima.

Shapes: N output features, K input features, J quantization groups per row, R sampled inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS, Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization import modelopt
from nvlm_deploy.quantization.clipping import clipped_amax
from nvlm_deploy.quantization.formats import W4A8
from nvlm_deploy.quantization.formats.codec import scales_of
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import Storage

_LARGEST_CODE = {"int8-static": 127.0, "fp8": E4M3_MAX, "nvfp4": 6 * E4M3_MAX}
# Some engines keep scales in FP16, whose normal numbers lie between these; both are BF16 numbers, too.
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-14, 2.0**15


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
    """Searches the scales of groups of linears.

    One FP32 weight is in memory at a time, with the copies that ModelOpt makes of it.
    """

    def __init__(
        self,
        recipe: Recipe,
        storages: Mapping[str, Storage],
        weights: ModelWeights,
        device: torch.device,
    ) -> None:
        """`storages`: by parameter name, of at least the linears' weights."""
        self.recipe, self.storages, self.weights, self.device = recipe, storages, weights, device

    def parts(self, group: LinearGroup) -> tuple[LinearGroup, ...]:
        """The quantized linears of a group, apart where they are not stored alike.

        Only a group that is quantized as a whole has one scale of the inputs, which the norm can take over.
        """
        by_storage: dict[Storage, list[str]] = {}
        for name in group.linears:
            storage = self.storages[f"{name}.weight"]
            if storage.quantized:
                by_storage.setdefault(storage, []).append(name)
        whole = [list(group.linears)] == list(by_storage.values())
        return tuple(
            replace(group, linears=tuple(linears), norm=group.norm if whole else None)
            for linears in by_storage.values()
        )

    def weight(self, linear: str, scales: GroupScales | None = None) -> Tensor:
        """Read a weight, float32 [N, K], divided by the group's scale if there is one."""
        if scales is not None and linear in scales.adjusted:
            return scales.adjusted[linear]
        weight_NK = self.weights.read(f"{linear}.weight", torch.float32).to(self.device)
        if scales is not None and scales.scale_K is not None:
            weight_NK.mul_(1 / scales.scale_K)
        return weight_NK

    def search(self, part: LinearGroup, seen: Observed | None) -> GroupScales:
        """Choose everything for linears with one input and one storage, as `parts` returns them.

        Args:
            seen: their inputs; None if the recipe needs no calibration.

        Raises:
            NvlmError: the linears saw nothing, or something that is no number.
        """
        storage = self.storages[part.weights[0]]
        if seen is None and storage.calibrated:
            raise NvlmError(
                f"{part.linears[0]} sees nothing of the calibration set",
                hint="use a set with images of several tiles, for example --calibration documents",
            )
        if seen is not None:
            _check_seen(part, storage, seen)
        scale_K = self._shared_scale(part, storage, seen)
        if scale_K is not None:
            scale_K = self._as_stored(scale_K, part.norm)
        scales = GroupScales(scale_K, folds=scale_K is not None and part.norm is not None)
        scales.input_scale = _input_scale(storage, scales, seen)
        for name in part.linears:
            scales.amax[name] = self._amax(name, storage, scales, seen)
        _unify(storage, scales)
        return scales

    def _shared_scale(self, part: LinearGroup, storage: Storage, seen: Observed | None) -> Tensor | None:
        """The mean of what each linear would choose alone, as ModelOpt's exporter shares scales."""
        if seen is None or storage.algorithm not in ("awq", "smoothquant"):
            return None
        alone = []
        for name in part.linears:
            weight_NK = self.weight(name)
            if storage.algorithm == "awq":
                rows_RK = seen.rows_RK()
                scale_K = modelopt.awq_scale(weight_NK, rows_RK, storage.group_size, self.recipe.awq)
            else:
                alpha = self.recipe.smoothquant.alpha
                scale_K = modelopt.smoothquant_scale(weight_NK, seen.amax_K, alpha)
            alone.append(scale_K)
        return torch.stack(alone).mean(0).clamp(_SMALLEST_SCALE, _LARGEST_SCALE)

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

    def _amax(self, linear: str, storage: Storage, scales: GroupScales, seen: Observed | None) -> Tensor:
        weight_NK = self.weight(linear, scales)
        amax = storage_codec(storage).amax(weight_NK)
        if seen is None:
            return amax
        if storage.algorithm == "awq" and self.recipe.awq.clip:
            rows_RK = seen.rows_RK()
            if scales.scale_K is not None:
                rows_RK *= scales.scale_K
            return clipped_amax(weight_NK, rows_RK, storage.group_size)
        if storage.algorithm == "gptq":
            scales.adjusted[linear] = modelopt.gptq_weights(
                weight_NK, seen.rows_RK(), amax, storage.group_size, self.recipe.gptq
            )
        return amax


def _input_scale(storage: Storage, scales: GroupScales, seen: Observed | None) -> Tensor | None:
    if storage.activations not in STATIC_ACTIVATIONS:
        return None
    assert seen is not None, "the plan asks for calibration"
    amax_K = seen.amax_K if scales.scale_K is None else seen.amax_K * scales.scale_K
    # An input that is always zero may have any scale but zero.
    amax = amax_K.max().clamp(min=torch.finfo(torch.float32).tiny)
    return amax / amax.new_tensor(_LARGEST_CODE[storage.activations])


def _unify(storage: Storage, scales: GroupScales) -> None:
    """Give linears that engines fuse one scale where the format has one per matrix."""
    amaxes = list(scales.amax.values())
    if isinstance(storage_codec(storage), W4A8):
        scales.scale_2 = scales_of(torch.stack([amax.max() for amax in amaxes]).max(), E4M3_MAX)
    elif not any(amax.dim() for amax in amaxes):
        scales.amax.update(dict.fromkeys(scales.amax, torch.stack(amaxes).max()))


def _check_seen(part: LinearGroup, storage: Storage, seen: Observed) -> None:
    if not seen.amax_CK.isfinite().all():
        raise NvlmError(
            f"the inputs of {part.linears[0]} overflow while the calibration set is shown",
            hint="check the checkpoint with nvlm-build run on the recipe fp32",
        )
    if storage.algorithm in ("awq", "gptq") and not seen.rows:
        raise NvlmError(
            f"{part.linears[0]} sees no token that counts: class_weights give its classes the weight 0",
            hint="--set calibration.class_weights.text=1, or another class that it sees",
        )
