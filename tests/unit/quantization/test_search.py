"""The choice of scales for a group of linears."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.calibration import TokenClass
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.groups import LinearGroup, decoder_layer_groups
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.plan import FULL_PRECISION, Storage
from nvlm_deploy.quantization.release import released_part
from nvlm_deploy.quantization.search import GroupScales, ScaleSearch

CPU = torch.device("cpu")
AWQ = Storage("int4", 32, activations="int8", algorithm="awq")
FP8 = Storage("fp8", activations="fp8", algorithm="max")
QKV, OUT, GATE_UP, DOWN = decoder_layer_groups(0)


def search(weights: ModelWeights, storages: Mapping[str, Storage], recipe: str = "int4-awq") -> ScaleSearch:
    everything = dict.fromkeys(weights.names(), FULL_PRECISION)
    return ScaleSearch(load_yaml_model("recipe", recipe, Recipe), {**everything, **storages}, weights, CPU)


def seen(features: int = 64, largest: float = 1.0, rows: int = 20) -> Observed:
    """Inputs whose channels have very different ranges."""
    observed = Observed.empty(features, CPU)
    generator = torch.Generator().manual_seed(1)
    x_RK = torch.randn(rows, features, generator=generator) * torch.logspace(-3, 0, features)
    x_RK *= largest / x_RK.abs().max()
    observed.add(x_RK, torch.full((rows,), TokenClass.TEXT, dtype=torch.int8), torch.arange(rows))
    return observed


def of(group: LinearGroup, storage: Storage) -> dict[str, Storage]:
    return dict.fromkeys(group.weights, storage)


class TestParts:
    def test_a_group_that_is_stored_alike_keeps_its_norm(self, weights: ModelWeights) -> None:
        assert search(weights, of(QKV, AWQ)).parts(QKV) == (QKV,)

    def test_linears_that_are_stored_apart_are_apart_and_fold_nothing(self, weights: ModelWeights) -> None:
        q, k, v = QKV.linears
        storages = {f"{q}.weight": AWQ, f"{k}.weight": AWQ, f"{v}.weight": FP8}
        assert search(weights, storages).parts(QKV) == (LinearGroup((q, k)), LinearGroup((v,)))

    def test_kept_linears_are_no_part(self, weights: ModelWeights) -> None:
        some = QKV.linears[:2]
        storages = dict.fromkeys(QKV.weights[:2], AWQ)
        assert search(weights, storages).parts(QKV) == (LinearGroup(some),)
        assert search(weights, {}).parts(QKV) == ()

    def test_fp8_beside_awq_gets_no_scale_of_the_inputs(self, weights: ModelWeights, modelopt: None) -> None:
        """Loaders of FP8 read no pre_quant_scale, so one would be lost there."""
        q, k, v = QKV.linears
        finder = search(weights, {f"{q}.weight": AWQ, f"{k}.weight": AWQ, f"{v}.weight": FP8})
        awq, fp8 = finder.parts(QKV)
        names = {name for part in (awq, fp8) for name, _ in tensors(finder, part, seen())}
        stem = "language_model.model.layers.0.self_attn."
        assert {name for name in names if name.endswith("pre_quant_scale")} == {
            f"{stem}{name}.pre_quant_scale" for name in ("q_proj", "k_proj")
        }
        assert not any("layernorm" in name for name in names)


def tensors(
    finder: ScaleSearch, part: LinearGroup, observed: Observed | None
) -> list[tuple[str, torch.Tensor]]:
    return list(released_part(finder, part, finder.search(part, observed)))


@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e6])
def test_scales_of_the_inputs_are_normal_fp16_numbers(
    weights: ModelWeights, modelopt: None, largest: float
) -> None:
    finder = search(weights, of(DOWN, AWQ))
    for observed in (seen(96, largest), seen(96, largest, rows=1)):
        scale_K = finder.search(DOWN, observed).scale_K
        assert scale_K is not None
        assert torch.equal(scale_K, scale_K.bfloat16().float()), "as it is stored"
        half_K = scale_K.half()
        assert torch.isfinite(half_K).all()
        assert torch.equal(half_K.float(), scale_K), "FP16 holds it exactly"


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(2.0**-20, 2.0**20), min_size=64, max_size=64))
def test_a_folded_scale_is_what_the_stored_norm_multiplies_with(
    weights: ModelWeights, factors: list[float]
) -> None:
    finder = search(weights, of(QKV, AWQ))
    scale_K = finder._as_stored(torch.tensor(factors), QKV.norm)
    released = dict(released_part(finder, QKV, GroupScales(scale_K, folds=True, amax=amaxes(finder))))
    stored_K = released["language_model.model.layers.0.input_layernorm.weight"]
    norm_K = weights.read(f"{QKV.norm}.weight")
    assert stored_K.dtype == norm_K.dtype
    # Inputs carry the stored norm; weights are divided by `scale_K`. Together they are as before.
    product_K = stored_K.double() / scale_K.double()
    assert torch.allclose(product_K, norm_K.double(), rtol=2**-22, atol=0)


def amaxes(finder: ScaleSearch) -> dict[str, torch.Tensor]:
    return {name: torch.ones(finder.weight(name).shape[0], 2) for name in QKV.linears}


def test_a_norm_that_is_zero_keeps_its_zero(weights: ModelWeights) -> None:
    class ZeroNorm(ModelWeights):
        def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
            tensor = super().read(name, dtype)
            if name.endswith("norm.weight"):
                tensor[3] = 0
            return tensor

    finder = search(ZeroNorm(weights.reader), of(QKV, AWQ))
    scale_K = finder._as_stored(torch.full((64,), 0.3), QKV.norm)
    assert scale_K[3] == pytest.approx(0.3)
    assert torch.isfinite(scale_K).all()


def test_the_scale_of_fused_linears_is_the_largest(weights: ModelWeights) -> None:
    scales = search(weights, of(QKV, FP8), "fp8").search(QKV, seen(largest=3.5))
    largest = max(float(weights.read(name).abs().max()) for name in QKV.weights)
    assert {float(amax) for amax in scales.amax.values()} == {largest}
    assert scales.input_scale == pytest.approx(3.5 / 448)
    assert scales.scale_K is None


def test_w4a8_shares_its_second_scale_and_not_its_codes(weights: ModelWeights, modelopt: None) -> None:
    storage = Storage("int4", 32, activations="fp8", algorithm="awq")
    scales = search(weights, of(GATE_UP, storage), "w4a8-awq").search(GATE_UP, seen())
    assert scales.scale_2 is not None
    assert float(scales.scale_2) * 448 == pytest.approx(max(float(a.max()) for a in scales.amax.values()))
    gate, up = (scales.amax[name] for name in GATE_UP.linears)
    assert gate.shape == up.shape == (96, 2)
    assert not torch.equal(gate, up)


def test_inputs_that_are_always_zero_have_a_scale(weights: ModelWeights) -> None:
    nothing = Observed.empty(64, CPU)
    nothing.add(torch.zeros(4, 64), torch.zeros(4, dtype=torch.int8), torch.arange(0))
    scale = search(weights, of(QKV, FP8), "fp8").search(QKV, nothing).input_scale
    assert scale is not None
    assert 0 < scale < 1e-30


def test_inputs_that_overflow_are_an_error(weights: ModelWeights) -> None:
    observed = seen()
    observed.amax_CK[0, 5] = torch.inf
    with pytest.raises(NvlmError, match=r"the inputs of language.layers.0.attention.q_proj overflow"):
        search(weights, of(QKV, FP8), "fp8").search(QKV, observed)


def test_a_search_without_rows_is_an_error(weights: ModelWeights) -> None:
    observed = seen()
    observed.rows.clear()
    with pytest.raises(NvlmError, match="sees no token that counts") as caught:
        search(weights, of(QKV, AWQ)).search(QKV, observed)
    assert "class_weights" in str(caught.value.hint)


def test_a_search_leaves_what_it_was_shown_as_it_was(weights: ModelWeights, modelopt: None) -> None:
    observed = seen()
    before = [rows.clone() for rows in observed.rows]
    finder = search(weights, of(QKV, AWQ))
    first, again = finder.search(QKV, observed), finder.search(QKV, observed)
    assert all(torch.equal(a, b) for a, b in zip(before, observed.rows, strict=True))
    assert first.scale_K is not None
    assert again.scale_K is not None
    assert torch.equal(first.scale_K, again.scale_K)
    assert all(torch.equal(first.amax[name], again.amax[name]) for name in QKV.linears)
