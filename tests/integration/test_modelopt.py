"""The streamed quantizer against ModelOpt's own: whole model in memory, calibrated and exported by ModelOpt.

The language model alone is compared, as Qwen2 of transformers, on a prompt of text: both see the same inputs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import Message, PromptBuilder, Tokenizer
from nvlm_deploy.quantization.formats import int4_codes
from nvlm_deploy.quantization.formats.codec import PackedWeight
from nvlm_deploy.quantization.search import ScaleSearch

pytestmark = pytest.mark.timeout(600)

Tensors = dict[str, Tensor]
QUESTION, ANSWER = "What is the sum of 2 and 2?", "It is 4."
GROUP = 32
PREFIX = "language_model."
ALONE = ("self_attn.o_proj", "mlp.down_proj")
FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)
NORMS = {"self_attn.q_proj": "input_layernorm", "mlp.gate_proj": "post_attention_layernorm"}
PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8-kv8": "FP8_DEFAULT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "int8-wo": "INT8_WEIGHT_ONLY_CFG",
    "int8-sq": "INT8_SMOOTHQUANT_CFG",
    "int4-awq": "INT4_AWQ_CFG",
    "w4a8-awq": "W4A8_AWQ_BETA_CFG",
}


@contextmanager
def quiet() -> Iterator[None]:
    """ModelOpt and transformers warn about each other's versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Comparison:
    """Both quantizers on one checkpoint; results are kept."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.reader, self.folder = CheckpointReader(checkpoint), folder
        self.results: dict[Any, Tensors] = {}
        (folder / "one.jsonl").write_text(json.dumps({"question": QUESTION, "answer": ANSWER}) + "\n")
        spec = {
            "name": "one",
            "description": "of a test",
            "licence": "CC0-1.0",
            "source": {"kind": "jsonl", "path": "one.jsonl"},
            "count": 1,
            "seed": 0,
            "max_tokens": 512,
        }
        (folder / "one.yaml").write_text(yaml.safe_dump(spec))
        tokenizer = Tokenizer.from_directory(checkpoint)
        message: list[Message] = [{"role": "user", "content": QUESTION}]
        prompt = PromptBuilder(tokenizer, self.reader.config).build(message, [])
        answer = [*tokenizer.encode_text(ANSWER), tokenizer.eos_id]
        self.ids = torch.from_numpy(np.concatenate([prompt.input_ids, answer])).unsqueeze(0)

    def released(self, name: str) -> Tensor:
        return self.reader.read(PREFIX + name, torch.float32)

    def hf_model(self, dtype: torch.dtype) -> Any:
        """The language model as transformers has it."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        language = self.reader.config.language
        config = Qwen2Config(
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            vocab_size=language.vocab_size,
            rms_norm_eps=language.norm_eps,
            max_position_embeddings=language.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            use_cache=False,
        )
        config.architectures = ["Qwen2ForCausalLM"]
        model = Qwen2ForCausalLM(config).eval()
        names = [name for name in self.reader.names() if name.startswith(PREFIX)]
        state = {name.removeprefix(PREFIX): self.reader.read(name, torch.float32) for name in names}
        model.load_state_dict(state, strict=True)
        model = model.to(dtype)
        model.config.dtype = dtype
        return model

    def theirs(
        self, recipe: str, dtype: torch.dtype = torch.float32, algorithm: dict[str, Any] | None = None
    ) -> Tensors:
        """Tensors of ModelOpt's export."""
        key = ("theirs", recipe, dtype, str(algorithm))
        if key not in self.results:
            with quiet(), torch.no_grad():
                import modelopt.torch.quantization as mtq
                from modelopt.torch.export import export_hf_checkpoint

                model, output = self.hf_model(dtype), self.folder / f"theirs-{len(self.results)}"
                config = modelopt_config(mtq, recipe, algorithm)
                mtq.quantize(model, config, lambda model: model(self.ids))
                export_hf_checkpoint(model, dtype=dtype, export_dir=output)
            self.results[key] = read_all(output)
        return self.results[key]

    def ours(self, recipe: str, *overrides: str) -> Tensors:
        """Tensors of the language model in our checkpoint, without the prefix."""
        key = ("ours", recipe, overrides)
        if key not in self.results:
            output = self.folder / f"ours-{len(self.results)}"
            changes = [*overrides]
            if "awq" in recipe:
                changes.append(f"weights.language.group_size={GROUP}")
            quantize_checkpoint(
                plan_quantize(
                    QuantizeRequest(
                        self.reader.directory,
                        recipe,
                        output,
                        calibration=str(self.folder / "one.yaml"),
                        overrides=tuple(changes),
                    )
                )
            )
            tensors = read_all(output)
            self.results[key] = {
                name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)
            }
        return self.results[key]


def read_all(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors.update(load_file(path))
    return tensors


def modelopt_config(mtq: Any, recipe: str, algorithm: dict[str, Any] | None) -> dict[str, Any]:
    """ModelOpt's preset with groups that divide the widths, and SmoothQuant's usual alpha."""
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, PRESETS[recipe]))
    for entry in config["quant_cfg"]:
        forms = entry.get("cfg", [])
        for form in forms if isinstance(forms, list) else [forms]:
            if form.get("block_sizes", {}).get(-1) == 128:
                form["block_sizes"][-1] = GROUP
    if recipe == "fp8-kv8":
        config["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    if recipe == "int8-sq":
        config["algorithm"] = {"method": "smoothquant", "alpha": 0.5}
    return config | {"algorithm": algorithm or config["algorithm"]}


@pytest.fixture(scope="module")
def comparison(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    with quiet():
        pytest.importorskip("modelopt.torch.quantization")
    return Comparison(tiny_checkpoint, tmp_path_factory.mktemp("comparison"))


def differing(ours: Tensors, theirs: Tensors) -> set[str]:
    """Names of tensors that are not equal, bit for bit, in shape, or in the dtype of quantized ones."""
    assert set(ours) == set(theirs)
    different = set()
    for name, mine in ours.items():
        their = theirs[name]
        # The released dtypes stay as they are here, and ModelOpt casts all floats to one.
        same_dtype = mine.dtype == their.dtype or mine.dtype == torch.bfloat16
        if not same_dtype or mine.shape != their.shape or not torch.equal(mine.float(), their.float()):
            different.add(name)
    return different


def linears() -> list[str]:
    return [f"model.layers.{i}.{name}" for i in range(2) for names in (*FUSED, ALONE) for name in names]


@pytest.mark.parametrize("recipe", ["nvfp4", "int8-wo"])
def test_every_tensor_is_equal(comparison: Comparison, recipe: str) -> None:
    """Input scales among them: a layer is shown the outputs of layers that are not quantized, as there."""
    assert differing(comparison.ours(recipe), comparison.theirs(recipe)) == set()


@pytest.mark.parametrize("recipe", ["fp8", "fp8-kv8"])
def test_fp8_differs_where_linears_share_a_scale(comparison: Comparison, recipe: str) -> None:
    ours, theirs = comparison.ours(recipe), comparison.theirs(recipe)
    fused = {
        f"model.layers.{layer}.{name}.{suffix}"
        for layer in range(2)
        for names in FUSED
        for name in names
        for suffix in ("weight", "weight_scale")
    }
    assert differing(ours, theirs) <= fused
    for layer in range(2):
        for names in FUSED:
            stems = [f"model.layers.{layer}.{name}" for name in names]
            largest = max(float(theirs[f"{stem}.weight_scale"]) for stem in stems)
            for stem in stems:
                assert float(ours[f"{stem}.weight_scale"]) == largest
                exact = comparison.released(f"{stem}.weight").double()
                # Engines fuse the three, and bring ModelOpt's codes to the largest scale: a second rounding.
                again = dequantized_fp8(theirs, stem) / largest
                refused = again.float().clamp(-448, 448).to(torch.float8_e4m3fn).double() * largest
                assert distance(dequantized_fp8(ours, stem), exact) <= distance(refused, exact)


def dequantized_fp8(tensors: Tensors, stem: str) -> Tensor:
    return tensors[f"{stem}.weight"].double() * tensors[f"{stem}.weight_scale"].double()


def distance(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


SCALED = ("int4-awq", "w4a8-awq", "int8-sq")


@pytest.mark.parametrize("recipe", SCALED)
def test_the_search_is_that_of_modelopt(
    comparison: Comparison, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our rounding of scales to what is stored, linears that share nothing are equal bit for bit."""
    monkeypatch.setattr(ScaleSearch, "_as_stored", lambda _self, scale_K, _norm: scale_K)
    ours = comparison.ours(recipe, "awq.clip=false", "description=not rounded")
    theirs = comparison.theirs(recipe)
    names = [name for name in ours if name.rpartition(".")[0].endswith(ALONE)]
    assert len(names) >= 2 * 2 * 3
    for name in names:
        if name.endswith("pre_quant_scale"):
            assert torch.equal(ours[name], theirs[name].bfloat16())
        else:
            assert torch.equal(ours[name], theirs[name]), name
    # Where linears share a scale it is divided out once here, and twice there: the mean of the scales comes
    # after each one's own. SmoothQuant's are left beside the weights there, and folded into the norm here.
    for layer in range(2):
        for first, norm in NORMS.items():
            stem = f"model.layers.{layer}."
            mine = ours[f"{stem}{norm}.weight"].float()
            scale = theirs.get(f"{stem}{first}.pre_quant_scale", torch.ones(()))
            assert torch.allclose(mine, theirs[f"{stem}{norm}.weight"] * scale, rtol=2**-8)


@pytest.mark.parametrize("recipe", SCALED)
def test_what_is_stored_is_nearer_to_the_released_weights(comparison: Comparison, recipe: str) -> None:
    """ModelOpt divides by a scale and stores it rounded to BF16; here the weights undo what is stored."""
    ours = comparison.ours(recipe, "awq.clip=false")
    theirs = comparison.theirs(recipe, torch.bfloat16)
    mine, others = [], []
    for stem in linears():
        exact = comparison.released(f"{stem}.weight").double()
        norm = norm_of(stem)
        if norm is not None:
            exact *= comparison.released(f"{norm}.weight").double()
        mine.append(distance(effective(ours, stem, recipe), exact))
        others.append(distance(effective(theirs, stem, recipe), exact))
    assert sum(mine) < sum(others)
    assert sum(a < b for a, b in zip(mine, others, strict=True)) > len(mine) / 2


def norm_of(stem: str) -> str | None:
    layer, _, name = stem.partition(".self_attn.") if ".self_attn." in stem else stem.partition(".mlp.")
    if name in ("o_proj", "down_proj"):
        return None
    return f"{layer}.{'input' if '.self_attn.' in stem else 'post_attention'}_layernorm"


def effective(tensors: Tensors, stem: str, recipe: str) -> Tensor:
    """norm x scale x weight as they are stored, float64 [N, K]."""
    codes, scale = tensors[f"{stem}.weight"], tensors[f"{stem}.weight_scale"].double()
    if recipe == "int8-sq":
        weight = codes.double() * scale[:, None]
    else:
        signed = int4_codes(PackedWeight(codes, scale)).double()
        weight = signed * scale.repeat_interleave(GROUP, dim=1)
    if f"{stem}.pre_quant_scale" in tensors:
        weight = weight * tensors[f"{stem}.pre_quant_scale"].double()
    norm = norm_of(stem)
    return weight if norm is None else weight * tensors[f"{norm}.weight"].double()


@pytest.mark.parametrize("recipe", ["w4a8-awq", "int8-sq"])
def test_input_scales_are_those_of_the_inputs(comparison: Comparison, recipe: str) -> None:
    """ModelOpt takes the largest of what each linear's own scale makes of the inputs, and keeps it as they
    get their mean instead; what the linears really see is measured here."""
    ours = comparison.ours(recipe, "awq.clip=false")
    model = comparison.hf_model(torch.float32)
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Any, Any], None]:
        return lambda _module, inputs: largest.update({name: inputs[0].abs().flatten(0, -2).amax(0)})

    for stem in linears():
        model.get_submodule(stem).register_forward_pre_hook(watch(stem))
    with torch.no_grad():
        model(comparison.ids)
    top = 448 if recipe == "w4a8-awq" else 127
    for stem in linears():
        norm = norm_of(stem)
        if norm is None:
            seen = largest[stem] * ours[f"{stem}.pre_quant_scale"].float()
        else:
            folded = ours[f"{norm}.weight"].float() / comparison.released(f"{norm}.weight")
            seen = largest[stem] * folded
        assert float(ours[f"{stem}.input_scale"]) == pytest.approx(float(seen.max()) / top, rel=1e-5)


def test_clips_are_those_of_modelopt_and_stay_where_it_loses_them(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScaleSearch, "_as_stored", lambda _self, scale_K, _norm: scale_K)
    whole = comparison.ours("int4-awq", "awq.clip=false", "description=not rounded")
    ours = comparison.ours("int4-awq", "description=not rounded")
    theirs = comparison.theirs("int4-awq", algorithm={"method": "awq_full", "alpha_step": 0.1})
    lite = comparison.theirs("int4-awq")

    def kept(clipped: Tensors, unclipped: Tensors, stem: str) -> Tensor:
        return clipped[f"{stem}.weight_scale"] / unclipped[f"{stem}.weight_scale"]

    for layer in range(2):
        for name in ALONE:
            stem = f"model.layers.{layer}.{name}"
            assert torch.allclose(kept(ours, whole, stem), kept(theirs, lite, stem), rtol=1e-5)
        for name in (name for names in FUSED for name in names):
            stem = f"model.layers.{layer}.{name}"
            # Its exporter takes maxima anew when it brings linears to their common scale.
            assert (kept(theirs, lite, stem) > 0.999).all()
            assert (kept(ours, whole, stem) < 0.99).float().mean() > 0.2
