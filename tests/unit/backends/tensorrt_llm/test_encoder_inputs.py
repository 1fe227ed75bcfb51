"""What requests hand an engine with cross-attention, against the masks and features of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.tensorrt_llm.encoder_inputs import TileFeatures, check_entries, entries_of
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.models import CrossTiles, Nvlm, load_model
from nvlm_deploy.models.cross_attention import GatedCrossAttention
from nvlm_deploy.models.decoder import DecoderLayer
from nvlm_deploy.preprocess import Prompt, PromptBuilder, Tokenizer
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

KINDS: dict[str, tuple[Literal["X", "H"], dict[str, object]]] = {
    "X": ("X", {}),
    "X without norm": ("X", {"kv_norm": "none"}),
    "H": ("H", {}),
    "H unbound": ("H", {"bind_tags": False}),
}
QUESTION = "Before <image> between <image> behind"
TILES = (3, 1)


@pytest.fixture(scope="module", params=list(KINDS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant, options = KINDS[request.param]
    path = tmp_path_factory.mktemp("encoder") / "checkpoint"
    write_random_checkpoint(cross_style_config(TINY_SHAPE, variant, [1], **options), path)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> Nvlm:
    return load_model(directory)


@pytest.fixture(scope="module")
def builder(directory: Path, model: Nvlm) -> PromptBuilder:
    return PromptBuilder(Tokenizer.from_directory(directory), model.config)


@pytest.fixture(scope="module")
def features(model: Nvlm) -> TileFeatures:
    table = model.language.embed_tokens.weight.detach().numpy()
    cross = model.config.cross_attention
    assert cross is not None
    return TileFeatures(cross, model.config.language.norm_eps, lambda ids: table[ids])


def visual_tokens(model: Nvlm, tiles: int) -> torch.Tensor:
    shape = (tiles, model.config.visual_tokens_per_tile, model.config.language.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 5


def block_of(model: Nvlm) -> GatedCrossAttention:
    layer = model.language.layers[1]
    assert isinstance(layer, DecoderLayer)
    assert layer.cross is not None
    return layer.cross


def test_masks_and_keys_are_those_of_the_reference(
    model: Nvlm, builder: PromptBuilder, features: TileFeatures
) -> None:
    prompt = builder.build(QUESTION, TILES)
    tiles, block = CrossTiles.of([prompt]), block_of(model)
    assert prompt.cross is not None
    assert tiles is not None
    visual_TND = visual_tokens(model, sum(TILES))
    made = features.inputs(prompt.cross, visual_TND.numpy(), visual_TND.shape[-1])
    with torch.no_grad():
        memory = model.tile_memory(visual_TND, tiles)
        assert memory is not None
        used = memory.tiles_BL[0] >= 0
        keys, _ = block._keys_and_values(memory)
        scaled = torch.from_numpy(made.features)
        if block.kv_norm is not None:
            scaled = scaled * block.kv_norm.weight
        ours = block.attention.project(scaled[None])[0]
    mask = memory.mask(tiles.visible_BT2)[0][:, used]
    assert np.array_equal(made.mask[:, 1:], mask.numpy())
    assert mask.any()
    assert not mask.all()
    assert np.array_equal(made.mask[:, 0], ~mask.any(dim=1).numpy())
    assert torch.allclose(ours[0, :, 1:], keys[0][:, used], atol=1e-5)
    assert not made.features[0].any()
    assert not made.skip
    per_tile = model.config.visual_tokens_per_tile
    longest = max((len(tag) for tag in prompt.cross.tags), default=0)
    assert len(made.features) <= entries_of(len(prompt.cross.tiles), per_tile, longest)


def test_text_alone_attends_to_nothing(model: Nvlm, builder: PromptBuilder, features: TileFeatures) -> None:
    prompt = builder.build("No image.")
    assert prompt.cross is not None
    width = model.config.language.hidden_size
    made = features.inputs(prompt.cross, None, width)
    assert made.skip
    assert made.features.shape == (1, width)
    assert not made.features.any()
    assert made.mask.shape == (len(prompt), 1)
    assert made.mask.all()


def test_what_does_not_fit_is_refused(model: Nvlm, builder: PromptBuilder, features: TileFeatures) -> None:
    prompt: Prompt = builder.build(QUESTION, TILES)
    assert prompt.cross is not None
    visual, width = visual_tokens(model, sum(TILES)).numpy(), model.config.language.hidden_size
    with pytest.raises(UsageError, match="places for 4 tiles, and 3 are given"):
        features.inputs(prompt.cross, visual[1:], width)
    with pytest.raises(UsageError, match="places for 4 tiles, and 0 are given"):
        features.inputs(prompt.cross, None, width)
    with pytest.raises(NvlmError, match="not finite"):
        features.inputs(prompt.cross, np.where(visual > 4, np.inf, visual), width)
    with pytest.raises(NvlmError, match=f"and {width + 1} wide"):
        features.inputs(prompt.cross, visual, width + 1)
    made = features.inputs(prompt.cross, visual, width)
    check_entries(made, len(made.features))
    with pytest.raises(UsageError, match="entries of tiles, and the engine takes"):
        check_entries(made, len(made.features) - 1)
