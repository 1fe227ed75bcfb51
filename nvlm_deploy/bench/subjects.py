"""Who is measured: an engine of one recipe, or transformers in FP32, on the same random weights.

Shapes: S prompt tokens, D decoder hidden size, I pixels per side of a tile, N visual tokens per tile.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nvlm_deploy.backends import SessionOptions, open_decoder_session, open_vision_session
from nvlm_deploy.backends.onnxruntime.build import EngineSettings, build_engine
from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.backends.protocol import Float32, Int64
from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.model import LanguageConfig, VisionConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.models import Projector
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.checkpoint import open_weights
from nvlm_deploy.quantization.plan import resolve

BACKEND = "onnxruntime"


class Subject(Protocol):
    """What the benchmark asks of everyone."""

    name: str
    weight_bytes: int
    load_seconds: float

    def encode(self, tiles: np.ndarray[Any, np.dtype[np.uint8]]) -> Float32:
        """Tiles uint8 [1, I, I, 3] -> visual tokens float32 [N, D]."""

    def prefill(self, input_ids: Int64) -> Float32:
        """Take in a prompt, int64 [S], from nothing; return its last logits, float32 [vocabulary]."""

    def decode(self, token: int) -> Float32:
        """Take in one more token; return its logits, float32 [vocabulary]."""


class EngineSubject:
    """An engine of a recipe, by name or path, built into `directory` unless it is there."""

    def __init__(self, checkpoint: Path, recipe: str, directory: Path, context: int, threads: int) -> None:
        self.name = Path(recipe).stem
        if not (directory / "llm").exists():
            _build(checkpoint, recipe, directory, context)
        self.weight_bytes = sum(path.stat().st_size for path in directory.rglob("*.data"))
        options = SessionOptions(threads=threads)
        began = time.perf_counter()
        self._vision = open_vision_session(BACKEND, directory / "vision/vision.onnx", options)
        self._decoder = open_decoder_session(BACKEND, directory / "llm/decoder.onnx", options)
        self.load_seconds = time.perf_counter() - began
        self._cache = self._decoder.new_cache(1, context)

    def encode(self, tiles: np.ndarray[Any, np.dtype[np.uint8]]) -> Float32:
        return self._vision.encode(tiles)[0]

    def prefill(self, input_ids: Int64) -> Float32:
        self._cache.lengths[:] = 0
        lengths = np.array([len(input_ids)], dtype=np.int32)
        return self._decoder.run(input_ids[None], lengths, self._cache)[0]

    def decode(self, token: int) -> Float32:
        return self._decoder.run(np.array([[token]]), np.ones(1, dtype=np.int32), self._cache)[0]


def _build(checkpoint: Path, name: str, directory: Path, context: int) -> None:
    recipe = load_yaml_model("recipe", name, Recipe)
    if recipe.makes_checkpoint:
        checkpoint = _quantized(checkpoint, name, directory)
    weights = open_weights(checkpoint)
    shapes = {name: weights.shape(name) for name in weights.names()}
    plan = adapt(resolve(recipe, shapes))
    build_engine(weights, weights.reader.config, plan, EngineSettings(context), directory)


def _quantized(checkpoint: Path, recipe: str, directory: Path) -> Path:
    """Quantize random weights: any calibration set says as little about them, so it is a small one."""
    output = directory.with_name(f"{directory.name}-quantized")
    request = QuantizeRequest(checkpoint, recipe, output, overrides=("calibration.count=2",))
    return quantize_checkpoint(plan_quantize(request)).checkpoint


class TransformersSubject:
    """Hugging Face's Qwen2 and InternVL vision tower in FP32, with NVLM's projector, on the same weights."""

    name = "transformers fp32"

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        weights = ModelWeights(CheckpointReader(checkpoint))
        self._language = _qwen2(weights.reader.config.language)
        self._vision = _internvl_vision(weights.reader.config.vision)
        self._projector = Projector(weights.reader.config)
        # Making the modules draws random weights, which a real load would not do.
        began = time.perf_counter()
        _fill(self._language, weights, "language.", _QWEN2_NAMES, inner="model.", outer=("lm_head.",))
        _fill(self._vision, weights, "vision.", _INTERNVL_NAMES)
        _fill(self._projector, weights, "projector.", {})
        self.load_seconds = time.perf_counter() - began
        models = (self._language, self._vision, self._projector)
        self.weight_bytes = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
        self._past: Any = None

    @torch.inference_mode()
    def encode(self, tiles: np.ndarray[Any, np.dtype[np.uint8]]) -> Float32:
        features = self._vision(torch.from_numpy(normalize_tiles(tiles))).last_hidden_state[:, 1:]
        return self._projector(features)[0].numpy()

    def prefill(self, input_ids: Int64) -> Float32:
        self._past = None
        return self._forward(torch.from_numpy(input_ids)[None])

    def decode(self, token: int) -> Float32:
        return self._forward(torch.tensor([[token]]))

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor) -> Float32:
        output = self._language(ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = output.past_key_values
        return output.logits[0, -1].numpy()


_QWEN2_NAMES = {
    "attention.": "self_attn.",
    "post_attention_norm.": "post_attention_layernorm.",
    "input_norm.": "input_layernorm.",
}
_INTERNVL_NAMES = {
    "class_embedding": "embeddings.cls_token",
    "position_embedding": "embeddings.position_embeddings",
    "patch_embedding.": "embeddings.patch_embeddings.projection.",
    "layers.": "encoder.layer.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "layer_scale": "lambda_",
    "out_proj.": "projection_layer.",
}


def _qwen2(language: LanguageConfig) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
        rms_norm_eps=language.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        max_position_embeddings=language.max_position_embeddings,
        tie_word_embeddings=language.tie_word_embeddings,
    )
    return Qwen2ForCausalLM(config)


def _internvl_vision(vision: VisionConfig) -> torch.nn.Module:
    from transformers import InternVLVisionConfig, InternVLVisionModel

    config = InternVLVisionConfig(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.intermediate_size,
        image_size=[vision.image_size, vision.image_size],
        patch_size=[vision.patch_size, vision.patch_size],
        layer_norm_eps=vision.norm_eps,
        norm_type="rms_norm",
        use_qk_norm=True,
        attention_bias=False,
    )
    return InternVLVisionModel(config)


def _fill(
    model: torch.nn.Module,
    weights: ModelWeights,
    prefix: str,
    renames: dict[str, str],
    inner: str = "",
    outer: tuple[str, ...] = (),
) -> None:
    """Load the parameters below `prefix` under the names that `model` uses; every one must be taken."""
    expected = model.state_dict()
    state = {}
    for name in weights.names():
        if not name.startswith(prefix):
            continue
        target = name.removeprefix(prefix)
        for ours, theirs in renames.items():
            target = target.replace(ours, theirs)
        if not target.startswith(outer or "\0"):
            target = inner + target
        state[target] = weights.read(name, torch.float32).reshape(expected[target].shape)
    model.load_state_dict(state, strict=True)
    model.eval()
