"""Samples against the prompt contract, and classes against a count of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvlm_deploy.calibration import CalibrationSample, Conversation, TokenClass
from nvlm_deploy.calibration.sample import build_sample
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess import PromptBuilder, load_image, tile_image
from nvlm_deploy.synthetic.documents import Exchange
from nvlm_deploy.train.conversation import tokenize_conversation

IMAGE = {"type": "image"}


def user(text: str, images: int = 0) -> dict[str, Any]:
    return {"role": "user", "content": [IMAGE] * images + [{"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def rows(example: Path) -> list[dict[str, str]]:
    lines = (example / "samples" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def samples(example: Path, rows: list[dict[str, str]], builder: PromptBuilder) -> list[CalibrationSample]:
    folder = example / "samples"
    return [
        build_sample(
            Conversation.of(
                "row", [user(row["question"], 1), assistant(row["answer"])], [folder / row["image"]]
            ),
            builder,
        )
        for row in rows[:12]
    ]


@pytest.fixture(scope="module")
def two_images(example: Path, rows: list[dict[str, str]], builder: PromptBuilder) -> CalibrationSample:
    """The first picture of several tiles and the sign of one."""
    files = [example / "samples" / rows[index]["image"] for index in (0, 4)]
    return build_sample(Conversation.of("two", [user("Which?", 2), assistant("both")], files), builder)


def test_ids_are_the_prompt_and_the_answer(
    samples: list[CalibrationSample], rows: list[dict[str, str]], builder: PromptBuilder
) -> None:
    for sample, row in zip(samples, rows, strict=False):
        prompt = builder.build(row["question"], sample.tiles_per_image)
        answer = [*builder.tokenizer.encode_text(row["answer"]), builder.tokenizer.eos_id]
        assert sample.input_ids.tolist() == [*prompt.input_ids, *answer]
        assert sample.input_ids.dtype == np.int64
        assert np.array_equal(sample.visual_positions, prompt.visual_positions)
        assert sample.prompt_length == len(prompt)


def test_several_turns_are_what_the_trainer_makes_of_them(
    example: Path, rows: list[dict[str, str]], builder: PromptBuilder
) -> None:
    exchanges = [Exchange("What is it?", "fox"), Exchange("And this?", "42")]
    messages = [user("What is it?", 1), assistant("fox"), user("And this?"), assistant("42")]
    image = example / "samples" / rows[0]["image"]
    sample = build_sample(Conversation.of("chat", messages, [image]), builder)
    trained = tokenize_conversation(builder, exchanges, sample.tiles_per_image[0])
    assert np.array_equal(sample.input_ids, trained.input_ids)
    assert np.array_equal(sample.visual_positions, trained.visual_positions)


def test_tiles_are_the_tile_contract_s(
    samples: list[CalibrationSample], rows: list[dict[str, str]], example: Path, config: NvlmConfig
) -> None:
    for sample, row in zip(samples, rows, strict=False):
        expected = tile_image(load_image(example / "samples" / row["image"]), config)
        assert np.array_equal(sample.tiles, expected.tiles)
        assert sample.tiles.dtype == np.uint8


def test_visual_classes_have_a_tile_s_tokens_each(
    samples: list[CalibrationSample], two_images: CalibrationSample, config: NvlmConfig
) -> None:
    seen: set[int] = set()
    for sample in [*samples, two_images]:
        counts = np.bincount(sample.token_classes, minlength=len(TokenClass))
        thumbnails = sum(tiles > 1 for tiles in sample.tiles_per_image)
        tiles = sum(sample.tiles_per_image) - thumbnails
        assert counts[TokenClass.THUMBNAIL] == thumbnails * config.visual_tokens_per_tile
        assert counts[TokenClass.VISUAL] == tiles * config.visual_tokens_per_tile
        seen.update(sample.tiles_per_image)
    assert {1, 3, 5} <= seen


def test_visual_classes_are_where_the_placeholders_are(
    two_images: CalibrationSample, config: NvlmConfig
) -> None:
    per_tile = config.visual_tokens_per_tile
    several, one = two_images.tiles_per_image
    assert (several > 1, one) == (True, 1)
    classes = two_images.token_classes[two_images.visual_positions].reshape(-1, per_tile)
    expected = [TokenClass.VISUAL] * (several - 1) + [TokenClass.THUMBNAIL] + [TokenClass.VISUAL]
    assert classes.tolist() == [[each] * per_tile for each in expected]


def test_tags_are_all_that_is_between_image_and_its_end(
    samples: list[CalibrationSample], builder: PromptBuilder
) -> None:
    """The text is read token by token: a tag is what overlaps with it, outside of the placeholders."""
    for sample in samples:
        tags = [f"<tile_{k}>" for k in range(1, sum(sample.tiles_per_image))]
        tags.append(builder.config.thumbnail_tag)
        runs = tag_texts(sample, builder)
        # `<Image>` ends in the token that the first tag starts in.
        assert [run.removeprefix(">") for run in runs] == tags


def tag_texts(sample: CalibrationSample, builder: PromptBuilder) -> list[str]:
    """The text of every run of TAG tokens."""
    positions = np.flatnonzero(sample.token_classes == TokenClass.TAG)
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    return [builder.tokenizer.decode(sample.input_ids[run]) for run in np.split(positions, breaks)]


def test_the_end_of_an_image_is_text(two_images: CalibrationSample, builder: PromptBuilder) -> None:
    after = int(two_images.visual_positions[-1]) + 1
    assert (two_images.token_classes[after:] == TokenClass.TEXT).all()
    assert builder.tokenizer.decode(two_images.input_ids[after:]).startswith("</Image>\nWhich?")


def test_text_alone_is_text(builder: PromptBuilder, config: NvlmConfig) -> None:
    # Written out, a tag is text.
    sample = build_sample(Conversation.of("text", [user("<Image><tile_1></Image>?")]), builder)
    assert (sample.token_classes == TokenClass.TEXT).all()
    assert sample.tiles.shape == (0, config.tile_size, config.tile_size, 3)
    assert sample.prompt_length == len(sample)


def test_only_the_last_answer_is_cut(two_images: CalibrationSample) -> None:
    assert two_images.shorten(len(two_images)) is two_images
    shorter = two_images.shorten(len(two_images) - 1)
    assert shorter is not None
    assert (len(shorter), shorter.cut_tokens) == (len(two_images) - 1, 1)
    assert len(shorter.token_classes) == len(shorter)
    assert np.array_equal(shorter.input_ids, two_images.input_ids[:-1])
    prompt = two_images.shorten(two_images.prompt_length)
    assert prompt is not None
    assert np.array_equal(prompt.visual_positions, two_images.visual_positions)
    assert two_images.shorten(two_images.prompt_length - 1) is None


def test_the_digest_covers_ids_and_tiles(two_images: CalibrationSample) -> None:
    other_ids, other_tiles = two_images.input_ids.copy(), two_images.tiles.copy()
    other_ids[3] += 1
    other_tiles[-1, -1, -1, -1] ^= 1
    digests = {
        two_images.digest(),
        replace(two_images, input_ids=other_ids).digest(),
        replace(two_images, tiles=other_tiles).digest(),
        replace(two_images, tiles=two_images.tiles[:-1]).digest(),
    }
    assert len(digests) == 4
    assert replace(two_images, input_ids=two_images.input_ids.copy()).digest() == two_images.digest()


def test_text_that_is_no_unicode_names_the_conversation(builder: PromptBuilder) -> None:
    conversation = Conversation.of("data.jsonl:3", [user("What?"), assistant("\ud800")])
    with pytest.raises(NvlmError, match=r"^data\.jsonl:3: the text is not valid Unicode"):
        build_sample(conversation, builder)
