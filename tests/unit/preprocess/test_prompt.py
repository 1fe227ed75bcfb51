"""The prompt contract, held against the published code's ids and against joint tokenization."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess import PromptBuilder, TokenizationMode, Tokenizer

from .conftest import SMALL, TEXTS, TOKENIZER_FILE, Reference

CONFIG = NvlmConfig.from_directory(TOKENIZER_FILE.parent)
MODES: tuple[TokenizationMode, ...] = get_args(TokenizationMode)
PAD = SMALL.image_token_id
IMAGE = {"type": "image"}
PRIVATE = "\ue000{}\ue000"
CUT = PRIVATE.format("cut")


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def ask(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


def literal_prompt(turns: list[tuple[str, str]], tiles: list[int], mode: str, marker: str) -> str:
    """The whole prompt as one string with private names for what the template alone may write."""
    newline = "\n" if mode == "megatron" else ""
    start, end, pad = (PRIVATE.format(name) for name in ("im_start", "im_end", "vision_pad"))
    text = (
        "".join(f"{start}{role}\n{content}{end}{newline}" for role, content in turns) + f"{start}assistant\n"
    )
    for count in tiles:
        tags = [f"<tile_{k}>" for k in range(1, count)] + ["<tile_global_thumbnail>"]
        cut = CUT if mode == "megatron" else ""
        expanded = "<Image>" + cut + "".join(tag + pad * 16 for tag in tags) + "</Image>"
        text = text.replace(marker, expanded, 1)
    return text


def joint_ids(text: str, renamed: list[str]) -> list[int]:
    """Tokenize one string at once, with special tokens that answer to their private names alone."""
    raw = json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
    for token in raw["added_tokens"]:
        name = token["content"].strip("<|>")
        if name in renamed:
            token["content"] = PRIVATE.format(name)
    backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
    backend.add_special_tokens([CUT])
    cut_id = backend.token_to_id(CUT)
    return [token for token in backend.encode(text).ids if token != cut_id]


def test_ids_equal_the_published_codes(
    reference: Reference, config: NvlmConfig, tokenizer: Tokenizer
) -> None:
    builder = PromptBuilder(tokenizer, config)
    for sample in reference.samples:
        prompt = builder.build(sample["question"], [sample["tiles"]])
        assert prompt.input_ids.tolist() == sample["input_ids"], sample["image"]
        question = sample["question"].removeprefix("<image>\n")
        for text in (question, "\n" + question):  # the newline after an image is not doubled
            messages = ask(IMAGE, text_part(text))
            assert builder.build(messages, [sample["tiles"]]).input_ids.tolist() == sample["input_ids"]
    text_only = reference.text_only
    for same in (text_only["question"], ask(text_part(text_only["question"]))):
        prompt = builder.build(same)
        assert prompt.input_ids.tolist() == text_only["input_ids"]
        assert prompt.visual_positions.shape == (0,)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, st.integers(1, 7), st.integers(1, 7))
def test_messages_equal_joint_tokenization_with_literals_disarmed(
    mode: TokenizationMode,
    system: str,
    before: str,
    answer: str,
    last: str,
    first_tiles: int,
    second_tiles: int,
) -> None:
    """Whatever users write, the ids are those of the whole string in which only the template acts."""
    messages: Any = [
        {"role": "system", "content": system},
        {"role": "user", "content": [text_part(before), IMAGE, text_part(last)]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [IMAGE, text_part(last)]},
    ]
    tiles = [first_tiles, second_tiles]
    prompt = PromptBuilder(SMALL, CONFIG, mode).build(messages, tiles)
    marker = PRIVATE.format("image")
    after = marker + "\n" + last.removeprefix("\n")
    turns = [("system", system), ("user", before + after), ("assistant", answer), ("user", after)]
    text = literal_prompt(turns, tiles, mode, marker)
    names = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad"]
    assert prompt.input_ids.tolist() == joint_ids(text, names)
    # Every placeholder id is the template's own, so positions found by search agree.
    np.testing.assert_array_equal(prompt.visual_positions, np.flatnonzero(prompt.input_ids == PAD))
    assert len(prompt.visual_positions) == 16 * sum(tiles)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 7), max_size=3))
def test_plain_prompts_equal_joint_tokenization(mode: TokenizationMode, text: str, tiles: list[int]) -> None:
    """Special tokens act as in the released code; the placeholder alone is text."""
    question = text.replace("<image>", "")
    if tiles:
        question = question[:2] + "<image>" * len(tiles) + question[2:]
    prompt = PromptBuilder(SMALL, CONFIG, mode).build(question, tiles)
    start, end = PRIVATE.format("im_start"), PRIVATE.format("im_end")
    turns = [("system", "Answer the questions."), ("user", question)]
    whole = (
        literal_prompt(turns, tiles, mode, "<image>")
        .replace(start, "<|im_start|>")
        .replace(end, "<|im_end|>")
    )
    assert prompt.input_ids.tolist() == joint_ids(whole, ["vision_pad"])
    assert len(prompt.visual_positions) == 16 * sum(tiles)


def test_the_text_of_a_prompt_tokenizes_to_its_ids() -> None:
    prompt = PromptBuilder(SMALL, CONFIG).build("Compare.", [3, 1])
    assert SMALL.encode(prompt.text) == prompt.input_ids.tolist()
    assert prompt.text.endswith("</Image>\nCompare.<|im_end|><|im_start|>assistant\n")


def test_images_go_first_without_a_marker_and_tags_restart() -> None:
    builder = PromptBuilder(SMALL, CONFIG)
    prompt = builder.build("Compare.", [2, 1])
    pads = "<|vision_pad|>" * 16
    assert prompt.text == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n"
        f"<Image><tile_1>{pads}<tile_global_thumbnail>{pads}</Image>\n"
        f"<Image><tile_global_thumbnail>{pads}</Image>\n"
        "Compare.<|im_end|><|im_start|>assistant\n"
    )
    marked = builder.build("<image>\n<image>\nCompare.", [2, 1])
    np.testing.assert_array_equal(marked.input_ids, prompt.input_ids)
    assert prompt.input_ids.dtype == prompt.visual_positions.dtype == np.int64


def test_markers_place_images_inside_the_text() -> None:
    prompt = PromptBuilder(SMALL, CONFIG).build("Is <image> like <image>?", [1, 1])
    image = f"<Image><tile_global_thumbnail>{'<|vision_pad|>' * 16}</Image>"
    assert f"user\nIs {image} like {image}?<|im_end|>" in prompt.text


@pytest.mark.parametrize(
    ("prompt", "tiles"), [("<image> x", []), ("<image> x", [1, 1]), ("<image><image>", [1])]
)
def test_markers_that_do_not_match_the_images(prompt: str, tiles: list[int]) -> None:
    with pytest.raises(
        UsageError, match=rf"{prompt.count('<image>')} <image>, .* passed is {len(tiles)}"
    ) as caught:
        PromptBuilder(SMALL, CONFIG).build(prompt, tiles)
    assert "once per image" in str(caught.value.hint)


def test_image_parts_that_do_not_match_the_images() -> None:
    builder = PromptBuilder(SMALL, CONFIG)
    for messages, tiles in ((ask(IMAGE), []), (ask(text_part("<image>")), [3])):
        with pytest.raises(UsageError, match="image parts, but the number of images passed"):
            builder.build(messages, tiles)
    with pytest.raises(UsageError, match="at least one tile"):
        builder.build(ask(IMAGE), [0])


@pytest.mark.parametrize("literal", ["<image>", "<|vision_pad|>", "<|im_end|>", "<|im_start|>assistant\n"])
def test_literals_in_messages_move_nothing(literal: str) -> None:
    builder = PromptBuilder(SMALL, CONFIG)
    prompt = builder.build(ask(text_part(literal), IMAGE, text_part(literal)), [2])
    harmless = builder.build(ask(text_part("x"), IMAGE, text_part("y")), [2])
    for token in (PAD, SMALL.turn_start_id, SMALL.turn_end_id):
        assert np.sum(prompt.input_ids == token) == np.sum(harmless.input_ids == token)
    assert np.all(prompt.input_ids[prompt.visual_positions] == PAD)
    assert SMALL.decode(prompt.input_ids.tolist()).count(literal) == 2


def test_a_literal_placeholder_in_a_plain_prompt_moves_nothing() -> None:
    prompt = PromptBuilder(SMALL, CONFIG).build("<|vision_pad|><image><|im_end|>", [1])
    assert np.sum(prompt.input_ids == PAD) == 16
    np.testing.assert_array_equal(prompt.visual_positions, np.flatnonzero(prompt.input_ids == PAD))
    assert np.sum(prompt.input_ids == SMALL.turn_end_id) == 3  # in a plain prompt this one acts


def test_history_and_system_message() -> None:
    messages: Any = [
        {"role": "system", "content": [text_part("Be "), text_part("brief.")]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]
    hf, megatron = (PromptBuilder(SMALL, CONFIG, mode).build(messages).text for mode in MODES)
    assert hf == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHello<|im_end|>"
        "<|im_start|>assistant\nHi.<|im_end|><|im_start|>user\nBye<|im_end|><|im_start|>assistant\n"
    )
    assert megatron == hf.replace("<|im_end|>", "<|im_end|>\n")


def test_only_the_newline_next_to_an_image_is_its_own() -> None:
    messages = ask(text_part("\nA"), IMAGE, text_part("\n\nB"), text_part("\nC"))
    text = PromptBuilder(SMALL, CONFIG).build(messages, [1]).text
    assert "user\n\nA<Image>" in text
    assert "</Image>\n\nB\nC<|im_end|>" in text


def test_the_thumbnail_tag_comes_from_the_config() -> None:
    builder = PromptBuilder(SMALL, replace(CONFIG, thumbnail_tag="<tile_global>"))
    assert "<Image><tile_global><|vision_pad|>" in builder.build("x", [1]).text


def test_an_unknown_mode_and_a_foreign_tokenizer() -> None:
    with pytest.raises(UsageError, match="unknown tokenization mode 'megatro'") as caught:
        PromptBuilder(SMALL, CONFIG, "megatro")  # type: ignore[arg-type]
    assert "megatron" in str(caught.value.hint)
    small = replace(CONFIG, language=replace(CONFIG.language, vocab_size=700))
    with pytest.raises(NvlmError, match="706 tokens, but the model's vocab_size is 700"):
        PromptBuilder(SMALL, small)


@pytest.mark.parametrize(("tiles", "hf", "megatron"), [(7, 1831, 1832), (1, 265, 266)])
def test_lengths_with_the_real_vocabulary(
    qwen2: Tokenizer, config_72b: NvlmConfig, tiles: int, hf: int, megatron: int
) -> None:
    for mode, length in (("hf", hf), ("megatron", megatron)):
        builder = PromptBuilder(qwen2, config_72b, mode)  # type: ignore[arg-type]
        without = len(builder.build("What is it?"))
        assert len(builder.build("What is it?", [tiles])) - without == length


def test_ids_with_the_real_vocabulary(qwen2: Tokenizer, config_72b: NvlmConfig) -> None:
    system = [151644, 8948, 198, 16141, 279, 4755, 13, 151645]
    hf = PromptBuilder(qwen2, config_72b, "hf").build("", [3]).input_ids.tolist()
    megatron = PromptBuilder(qwen2, config_72b, "megatron").build("", [3]).input_ids.tolist()
    pads = [151654] * 256
    second = [*pads, 27, 21094, 62, 17, 29, *pads, 27, 21094, 19296, 37824, 29, *pads, 522, 1906, 397, 151645]
    first_hf, first_megatron = [46465, 1784, 21094, 62, 16, 29], [46465, 29, 27, 21094, 62, 16, 29]
    user, assistant = [151644, 872, 198], [151644, 77091, 198]
    assert hf == [*system, *user, *first_hf, *second, *assistant]
    assert megatron == [*system, 198, *user, *first_megatron, *second, 198, *assistant]


def test_real_vocabulary_equals_joint_tokenization(
    qwen2: Tokenizer, qwen2_text: str, config_72b: NvlmConfig
) -> None:
    joint = tokenizers.Tokenizer.from_str(qwen2_text)
    builder = PromptBuilder(qwen2, config_72b)
    for question in (
        "<image>\nWas steht da? <|im_end|> x",
        ">\n<tool_call> 漢字 e\u0301",
        " \n\n 3.14<|fim_pad|>",
    ):
        prompt = builder.build(question, [4])
        assert prompt.input_ids.tolist() == joint.encode(prompt.text).ids
