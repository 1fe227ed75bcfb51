"""The contracts of NVLM-X and NVLM-H, stated twice, and the faults that only a second statement finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.models import CrossTiles, load_model
from nvlm_deploy.preprocess import Prompt, PromptBuilder, Tokenizer, normalize_tiles
from nvlm_deploy.preprocess.tiles import TiledImage, preprocess_images
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import cross_style_config
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.contract_check import ContractResult, check_contract
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.states import decoder_places
from nvlm_deploy.verify.walk import ModelWalk, WalkResult
from tests.conftest import TINY_SHAPE

Change = Callable[[Prompt], Prompt]


@pytest.fixture(scope="module", params=["X", "H"])
def variant(request: pytest.FixtureRequest) -> Literal["X", "H"]:
    found: Literal["X", "H"] = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(variant: Literal["X", "H"], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contract") / variant
    write_random_checkpoint(cross_style_config(TINY_SHAPE, variant, [1]), path)
    return path


class Runtime:
    """What an engine does before its graphs run, with a fault in it if there is one."""

    def __init__(
        self, checkpoint: Path, mode: Any = "hf", change: Change | None = None, roll: int = 0
    ) -> None:
        config = CheckpointReader(checkpoint).config
        self.builder = PromptBuilder(Tokenizer.from_directory(checkpoint), config, mode)
        self.change, self.roll = change, roll

    def preprocess(self, prompt: str, images: Any = ()) -> tuple[Prompt, tuple[TiledImage, ...]]:
        tiled = preprocess_images(images, self.builder.config)
        tiled = [replace(image, tiles=np.roll(image.tiles, self.roll, axis=0)) for image in tiled]
        built = self.builder.build(prompt, [len(image) for image in tiled])
        return built if self.change is None else self.change(built), tuple(tiled)


def check(checkpoint: Path, runtime: Runtime) -> ContractResult:
    contract = Contract(checkpoint, runtime.builder.mode)
    return check_contract(runtime, contract, PromptSet.make(contract, 5).asked)


@pytest.mark.parametrize("mode", ["hf", "megatron"])
def test_the_builder_keeps_the_contract(checkpoint: Path, mode: str) -> None:
    result = check(checkpoint, Runtime(checkpoint, mode))
    assert (result.wrong_ids, result.wrong_tiles) == ((), ())
    assert result.checked > 20


def test_shifted_tags_are_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Tokenizer.encode_text

    def shifted(self: Tokenizer, text: str) -> list[int]:
        """Every regular tag is that of the next tile."""
        if text.startswith("<tile_") and text[6].isdigit():
            text = f"<tile_{int(text[6]) + 1}>"
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode_text", shifted)
    result = check(checkpoint, Runtime(checkpoint))
    assert result.wrong_ids
    found, expected = result.wrong_ids[0].split("must b")
    assert "tile_2" in found
    assert "tile_1" in expected


def test_a_thumbnail_that_is_first_is_found(checkpoint: Path) -> None:
    result = check(checkpoint, Runtime(checkpoint, roll=1))
    assert not result.wrong_ids
    assert any("the thumbnail is tile 1 of" in sentence for sentence in result.wrong_tiles)


def off_by_one(prompt: Prompt) -> Prompt:
    """Every token sees what the next one should."""
    assert prompt.cross is not None
    return replace(prompt, cross=replace(prompt.cross, visible=np.roll(prompt.cross.visible, -1, axis=0)))


def reversed_tiles(prompt: Prompt) -> Prompt:
    assert prompt.cross is not None
    return replace(prompt, cross=replace(prompt.cross, tiles=prompt.cross.tiles[::-1]))


def nothing_beside(prompt: Prompt) -> Prompt:
    return replace(prompt, cross=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (off_by_one, "sees tiles"),
        (reversed_tiles, "are in cross-attention, and must be"),
        (nothing_beside, "nothing is in cross-attention"),
    ],
)
def test_what_is_wrong_beside_the_sequence_is_said(checkpoint: Path, change: Change, words: str) -> None:
    result = check(checkpoint, Runtime(checkpoint, change=change))
    assert any(words in sentence for sentence in result.wrong_ids)


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> PromptSet:
    return PromptSet.make(Contract(checkpoint), 5)


@pytest.fixture(scope="module")
def walked(checkpoint: Path, prompts: PromptSet) -> WalkResult:
    model = StreamedModel(ModelWeights(CheckpointReader(checkpoint)), torch.device("cpu"))
    return ModelWalk(model).run(prompts.all, frozenset(prompts.probed))


def test_the_walk_s_logits_are_the_model_s(checkpoint: Path, prompts: PromptSet, walked: WalkResult) -> None:
    model = load_model(checkpoint)
    for prompt, found in zip(prompts.all, walked.logits, strict=True):
        ids = torch.from_numpy(prompt.sequence.input_ids)[None]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(prompt.sequence.visual_positions)] = True
        tiles = prompt.sequence.tiles
        pixels = torch.from_numpy(normalize_tiles(tiles)) if len(tiles) else None
        with torch.inference_mode():
            logits = model(ids, pixels, mask, tiles=CrossTiles.of([prompt.sequence]))[0]
        torch.testing.assert_close(torch.from_numpy(found), logits[prompt.logit_positions])


def test_exchanged_tags_change_the_logits(prompts: PromptSet, walked: WalkResult) -> None:
    first = len(prompts.asked)
    for number, (original, _) in enumerate(prompts.swapped):
        assert not np.array_equal(walked.logits[first + number], walked.logits[original])


def test_cross_attention_has_a_place_of_its_own(
    checkpoint: Path, prompts: PromptSet, walked: WalkResult
) -> None:
    places = [place.name for place in decoder_places(CheckpointReader(checkpoint).config)]
    layer = "language.layers.1"
    names = [f"{layer}.attention", f"{layer}.cross", f"{layer}.mlp"]
    assert places == [
        "language.embeddings",
        "language.layers.0.attention",
        "language.layers.0.mlp",
        *names,
    ]
    assert set(places) <= set(walked.states)
    added = walked.states[names[1]] - walked.states[names[0]]
    counts = [len(prompts.asked[number].probe_positions()) for number in prompts.probed]
    of_prompts = np.split(added, np.cumsum(counts)[:-1])
    for number, rows in zip(prompts.probed, of_prompts, strict=True):
        prompt = prompts.asked[number]
        sees = prompt.sequence.sees_tiles[prompt.probe_positions()]
        assert (rows != 0).any(axis=1).tolist() == sees.tolist()
    assert any(prompts.asked[number].image is not None for number in prompts.probed)


def test_placed_before_the_layer_cross_attention_comes_first(tmp_path: Path) -> None:
    config = cross_style_config(TINY_SHAPE, "X", [0], placement="before_layer")
    write_random_checkpoint(config, tmp_path / "before")
    reader = CheckpointReader(tmp_path / "before")
    places = {place.name: place for place in decoder_places(reader.config)}
    assert places["language.layers.0.cross"].before == "language.embeddings"
    contract = Contract(tmp_path / "before")
    prompts = PromptSet.make(contract, 5)
    result = ModelWalk(StreamedModel(ModelWeights(reader), torch.device("cpu"))).run(
        prompts.asked, frozenset({0})
    )
    change = result.states["language.layers.0.cross"] - result.states["language.embeddings"]
    sees = prompts.asked[0].sequence.sees_tiles[prompts.asked[0].probe_positions()]
    assert (change != 0).any(axis=1).tolist() == sees.tolist()


def test_an_image_of_one_tile_is_in_the_sequence_of_nvlm_h_alone(
    checkpoint: Path, variant: Literal["X", "H"]
) -> None:
    contract = Contract(checkpoint)
    tags = contract.tags(len(contract.tiles(Image.new("RGB", (56, 56)))))
    cross = contract.prompt("What?", tags).cross
    assert cross is not None
    assert (len(cross.attended), len(cross.in_sequence)) == {"X": (1, 0), "H": (0, 1)}[variant]
