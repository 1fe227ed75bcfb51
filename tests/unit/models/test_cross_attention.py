"""NVLM-X and NVLM-H in PyTorch: what sees which tile, and what is left without tiles or with closed gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models import CrossTiles, KvCache, Nvlm, NvlmD, load_model, new_model
from nvlm_deploy.models.cross_attention import GatedCrossAttention
from nvlm_deploy.preprocess import Prompt, PromptBuilder, Tokenizer
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from tests.conftest import TINY_SHAPE

VARIANTS = ("X", "H")
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"placement": "before_layer", "kv_norm": "none", "gated_mlp": True, "attention_bias": True},
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "bind_tags": False},
)


@pytest.fixture(scope="module", params=[(v, i) for v in VARIANTS for i in range(len(OPTIONS))], ids=str)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant, number = request.param
    path = tmp_path_factory.mktemp("cross") / f"{variant}{number}"
    write_random_checkpoint(cross_style_config(TINY_SHAPE, variant, [0, 1], **OPTIONS[number]), path)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> Nvlm:
    return load_model(directory)


@pytest.fixture(scope="module")
def builder(directory: Path, model: Nvlm) -> PromptBuilder:
    return PromptBuilder(Tokenizer.from_directory(directory), model.config)


def pixels(tiles: int, seed: int = 0) -> Tensor:
    return torch.randn(tiles, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def logits(model: Nvlm, prompt: Prompt, tiles_N3SS: Tensor, cache: KvCache | None = None) -> Tensor:
    """Logits [S, vocabulary] of one prompt."""
    ids_1S = torch.from_numpy(prompt.input_ids)[None]
    mask_1S = torch.zeros_like(ids_1S, dtype=torch.bool)
    mask_1S[0, torch.from_numpy(prompt.visual_positions)] = True
    with torch.inference_mode():
        result: Tensor = model(ids_1S, tiles_N3SS, mask_1S, cache, CrossTiles.of([prompt]))[0]
    return result


def places(builder: PromptBuilder, prompt: Prompt, text: str) -> list[int]:
    """Positions of the tokens of `text`, which stands in the prompt once; one token is one byte here."""
    ids, wanted = prompt.input_ids.tolist(), builder.tokenizer.encode_text(text)
    starts = [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]
    assert len(starts) == 1
    return list(range(starts[0], starts[0] + len(wanted)))


def changed(before: Tensor, after: Tensor) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_text_sees_the_tiles_before_it_and_a_tag_its_own(model: Nvlm, builder: PromptBuilder) -> None:
    """The very first layer's cross-attention, before self-attention carries anything on."""
    if model.config.variant != "X":
        pytest.skip("tags of NVLM-H are no text")
    prompt = builder.build("A <image> B <image> C", [3, 1])
    assert prompt.cross is not None
    visible = prompt.cross.visible.tolist()
    for tag, tile in (("<tile_1>", 0), ("<tile_2>", 1)):
        assert all(visible[place] == [tile, tile + 1] for place in places(builder, prompt, tag))
    for text, end in (("A ", 0), (" B ", 3), (" C", 4)):
        assert all(visible[place] == [0, end] for place in places(builder, prompt, text))
    image = pixels(4)
    seen = attended(model, builder, prompt, image)
    for tile in range(4):
        other = image.clone()
        other[tile] += 1
        moved = changed(seen, attended(model, builder, prompt, other))
        assert moved == [first <= tile < end for first, end in visible]


def attended(model: Nvlm, builder: PromptBuilder, prompt: Prompt, tiles_N3SS: Tensor) -> Tensor:
    """What the first layer's cross-attention gives each position, [S, D]."""
    cross, tiles = model.language.layers[0].cross, CrossTiles.of([prompt])
    assert isinstance(cross, GatedCrossAttention)
    assert tiles is not None
    with torch.inference_mode():
        memory = model.tile_memory(model.encode_tiles(tiles_N3SS), tiles)
        assert memory is not None
        embeds_1SD = model.language.embed_tokens(torch.from_numpy(prompt.input_ids)[None])
        result: Tensor = cross(embeds_1SD, memory, memory.mask(tiles.visible_BT2))[0]
    return result


def test_a_tag_sees_nothing_of_other_tiles(model: Nvlm, builder: PromptBuilder) -> None:
    """Through all layers: a tag's logits depend on its own tile and on what stands before it alone."""
    if model.config.variant != "X":
        pytest.skip("tags of NVLM-H are no text")
    prompt = builder.build("What is this?", [3])
    image = pixels(3)
    before = logits(model, prompt, image)
    for tile, tag in ((0, "<tile_1>"), (1, "<tile_2>")):
        other = image.clone()
        other[tile] += 1
        moved = changed(before, logits(model, prompt, other))
        assert any(moved[place] for place in places(builder, prompt, tag))
        assert not any(moved[: places(builder, prompt, tag)[0]])


def test_the_order_of_tiles_matters(directory: Path, builder: PromptBuilder) -> None:
    """Swapped tiles change the answer: tags say which is which. Unbound tags of NVLM-H cannot."""
    model = load_model(directory, torch.float64)
    prompt = builder.build("What is this?", [3])
    image = pixels(3).double()
    difference = logits(model, prompt, image)[-1] - logits(model, prompt, image[[1, 0, 2]])[-1]
    cross = model.config.cross_attention
    assert cross is not None
    # Random weights see little; in FP64 little is far more than rounding.
    if model.config.variant == "H" and not cross.bind_tags:
        assert difference.abs().max() < 1e-14
    else:
        assert difference.abs().max() > 1e-11


def test_text_alone_is_the_bare_language_model(model: Nvlm, builder: PromptBuilder) -> None:
    bare = bare_language_model(model)
    prompt = builder.build("Who are you?")
    ids = torch.from_numpy(prompt.input_ids)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids, tiles=CrossTiles.of([prompt])), bare(ids))
        assert torch.equal(model(ids), bare(ids))


def test_closed_gates_leave_the_language_model(directory: Path, builder: PromptBuilder) -> None:
    model = load_model(directory)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.zero_()
    prompt = builder.build("What is this?", [3])
    with torch.inference_mode():
        expected = bare_language_model(model)
        visual = model.encode_tiles(pixels(3))[-1:]
        ids = torch.from_numpy(prompt.input_ids)[None]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(prompt.visual_positions)] = True
        embeds = expected.embed(ids, visual if mask.any() else None, mask if mask.any() else None)
        bare = expected.language.logits(expected.language(embeds))[0]
    assert torch.equal(logits(model, prompt, pixels(3)), bare)


def bare_language_model(model: Nvlm) -> Nvlm:
    """An NVLM-D with the decoder's own weights and no cross-attention."""
    from dataclasses import replace

    bare = NvlmD(replace(model.config, variant="D", cross_attention=None)).eval()
    own = {name: value for name, value in model.language.state_dict().items() if ".cross." not in name}
    bare.language.load_state_dict(own, strict=True)
    return bare


def test_new_models_have_closed_gates(model: Nvlm) -> None:
    fresh = new_model(model.config)
    gates = [value for name, value in fresh.state_dict().items() if name.endswith("gate")]
    assert gates
    assert not any(gate.any() for gate in gates)


def test_batches_and_caches_change_nothing(model: Nvlm, builder: PromptBuilder) -> None:
    """Rows of images and text together, right-padded, equal each alone; decoding equals one long prompt."""
    prompts = [
        builder.build("A <image> B", [2]),
        builder.build("Text."),
        builder.build("<image>\nLonger, C?", [4]),
    ]
    images = [pixels(2, 1), pixels(0), pixels(4, 2)]
    length = max(len(prompt) for prompt in prompts)
    ids, mask = torch.zeros(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt.input_ids)
        mask[row, torch.from_numpy(prompt.visual_positions)] = True
    with torch.inference_mode():
        together = model(ids, torch.cat(images), mask, tiles=CrossTiles.of(prompts))
    for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        if len(image):
            alone = logits(model, prompt, image)
        else:
            alone = model(torch.from_numpy(prompt.input_ids)[None])[0]
        torch.testing.assert_close(together[row, : len(prompt)], alone, atol=1e-5, rtol=1e-4)


def test_decoding_equals_one_long_prompt(model: Nvlm, builder: PromptBuilder) -> None:
    prompt, image = builder.build("What is this?", [3]), pixels(3)
    cache = KvCache()
    stepwise = [logits(model, prompt, image, cache)[-1]]
    added = [5, 9, 77]
    with torch.inference_mode():
        for token in added:
            stepwise.append(model(torch.tensor([[token]]), cache=cache)[0, -1])
    whole = CrossTiles.of([prompt], len(prompt) + len(added))
    ids = torch.cat([torch.from_numpy(prompt.input_ids), torch.tensor(added)])[None]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, torch.from_numpy(prompt.visual_positions)] = True
    with torch.inference_mode():
        at_once = model(ids, image, mask, tiles=whole)[0, -len(added) - 1 :]
    torch.testing.assert_close(torch.stack(stepwise), at_once, atol=1e-5, rtol=1e-4)


def test_the_two_lists_of_parameters_agree(model: Nvlm) -> None:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert parameter_shapes(model.config) == shapes


def test_images_of_one_tile(model: Nvlm, builder: PromptBuilder) -> None:
    """In NVLM-H the only tile stands in the sequence and cross-attention has nothing to attend to."""
    prompt = builder.build("What is this?", [1])
    assert prompt.cross is not None
    expected: dict[str, tuple[int, int]] = {"X": (1, 0), "H": (0, 1)}
    variant: Literal["X", "H"] = "X" if model.config.variant == "X" else "H"
    assert (len(prompt.cross.tiles), len(prompt.cross.sequence_tiles)) == expected[variant]
    assert any(changed(logits(model, prompt, pixels(1)), logits(model, prompt, pixels(1, seed=1))))


def test_tiles_and_prompts_that_do_not_match(model: Nvlm, builder: PromptBuilder) -> None:
    prompt = builder.build("What is this?", [3])
    with pytest.raises(NvlmError, match="the prompts are about 3 tiles, and 2 are given"):
        logits(model, prompt, pixels(2))
    with pytest.raises(NvlmError, match="3 tiles without tags"):
        model(torch.from_numpy(prompt.input_ids)[None], pixels(3))
    assert prompt.cross is not None
    beyond = replace(prompt.cross, visible=prompt.cross.visible + np.array([0, 9]))
    with pytest.raises(NvlmError, match=r"row 0: token 0 is to see the tiles \[0, 9\)"):
        CrossTiles.of([replace(prompt, cross=beyond)])
