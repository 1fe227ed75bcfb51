"""The PyTorch model against what the published code computed, and against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models import KvCache, Nvlm, load_model, meta_model, pixel_shuffle
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, load_image, normalize_tiles, tile_image
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def golden_model(golden_dir: Path) -> Nvlm:
    return load_model(golden_dir)


@pytest.mark.parametrize("index", range(10))
def test_golden_images(golden_dir: Path, golden_model: Nvlm, index: int) -> None:
    sample = json.loads((golden_dir / "expected.json").read_text())["samples"][index]
    expected = np.load(golden_dir / f"expected_{index:02d}.npz")
    tokenizer = Tokenizer.from_directory(golden_dir)
    image = tile_image(load_image(golden_dir / "images" / sample["image"]), golden_model.config)
    prompt = PromptBuilder(tokenizer, golden_model.config).build(sample["question"], [len(image)])
    ids = torch.from_numpy(prompt.input_ids)[None]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(prompt.visual_positions)] = True
    pixels = torch.from_numpy(normalize_tiles(image.tiles))
    with torch.inference_mode():
        visual = golden_model.encode_tiles(pixels)
        logits = golden_model(ids, pixels, mask)[0, -1]
    assert relative_error(visual[0].numpy(), expected["vision_first"]) < 1e-4
    assert relative_error(visual[-1].numpy(), expected["vision_last"]) < 1e-4
    assert relative_error(logits.numpy(), expected["logits_last"].ravel()) < 1e-4
    assert golden_model.generate(ids, pixels, mask, max_new_tokens=16) == sample["greedy16"]


def test_decoder_equals_transformers(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint)
    language = model.config.language
    peer = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=language.vocab_size,
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            rms_norm_eps=language.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        )
    )
    renamed = {
        (name if name.startswith("lm_head") else "model." + name)
        .replace("attention.", "self_attn.", 1)
        .replace("post_self_attn.", "post_attention.")
        .replace("_norm.", "_layernorm."): value
        for name, value in model.language.state_dict().items()
    }
    peer.load_state_dict(renamed, strict=True)
    ids = torch.arange(2, 42).view(2, 20)
    with torch.inference_mode():
        assert relative_error(model(ids).numpy(), peer(ids).logits.numpy()) < 1e-5


@pytest.mark.parametrize("split", [1, 7, 19])
def test_kv_cache_changes_nothing(tiny_checkpoint: Path, split: int) -> None:
    model = load_model(tiny_checkpoint)
    ids = torch.arange(5, 25)[None]
    cache = KvCache()
    with torch.inference_mode():
        whole = model(ids)
        parts = torch.cat([model(ids[:, :split], cache=cache), model(ids[:, split:], cache=cache)], dim=1)
    assert cache.length == 20
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_pixel_shuffle_orders_channels_by_row_then_column() -> None:
    side, width = 4, 3
    patches = torch.arange(side * side * width, dtype=torch.float32).view(1, side * side, width)
    shuffled = pixel_shuffle(patches)
    for row in range(side // 2):
        for column in range(side // 2):
            square = [(2 * row + i) * side + 2 * column + j for i in range(2) for j in range(2)]
            expected = torch.cat([patches[0, place] for place in square])
            assert torch.equal(shuffled[0, row * (side // 2) + column], expected)


def test_full_72b_on_the_meta_device() -> None:
    model = meta_model(NvlmConfig.from_dict(released_style_config(SHAPES["nvlm-d-72b"])))
    # Without the dummy heads: 79,379,593,344 parameters are in the file.
    assert sum(p.numel() for p in model.parameters()) == 78_863_416_704
    assert all(p.is_meta for p in model.parameters())
