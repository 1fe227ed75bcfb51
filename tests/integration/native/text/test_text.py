"""The native tokenizer and prompts, held against the `tokenizers` library and the Python runtime."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.preprocess.messages import gather_images
from nvlm_deploy.synthetic.random_checkpoint import byte_tokenizer

from .conftest import TextLines
from .texts import random_text

# All planes in which characters are assigned; of the others, a sample.
CODE_POINTS = [
    *range(0xD800),
    *range(0xE000, 0x40000),
    *range(0xE0000, 0xE1000),
    *range(0x40000, 0xE0000, 101),
    *range(0xE1000, 0x110000, 101),
]


def assert_same_ids(native: TextLines, path: Path, count: int) -> None:
    """Both ways to encode, of `count` random texts."""
    generator = random.Random(7)
    joint = tokenizers.Tokenizer.from_file(str(path))
    python = Tokenizer.from_directory(path.parent)
    assert native.ask(load=str(path))["size"] == python.size
    for number in range(count):
        text = random_text(generator)
        expected = joint.encode(text, add_special_tokens=False).ids
        assert native.ask(encode=text) == {"ids": expected}, repr(text)
        if number % 4 == 0:
            assert native.ask(encode_text=text) == {"ids": python.encode_text(text)}, repr(text)


def test_ids_of_20000_texts_with_the_real_vocabulary(native: TextLines, qwen2_file: Path) -> None:
    assert_same_ids(native, qwen2_file, 20_000)


def test_ids_with_the_example(native: TextLines, example_dir: Path) -> None:
    assert_same_ids(native, example_dir / "tokenizer.json", 3_000)


def test_ids_without_merges_and_words(native: TextLines, tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert_same_ids(native, tmp_path / "tokenizer.json", 500)


def test_long_words_and_texts(native: TextLines, qwen2_file: Path) -> None:
    joint = tokenizers.Tokenizer.from_file(str(qwen2_file))
    native.ask(load=str(qwen2_file))
    generator = random.Random(5)
    for length in (24, 25, 26, 100, 3_000):
        for alphabet in ("a", "ab", "thein", "-=", "ก้", "あいう"):
            text = "".join(generator.choices(alphabet, k=length))
            assert native.ask(encode=text) == {"ids": joint.encode(text).ids}
    text = " ".join(random_text(generator) for _ in range(500))
    assert native.ask(encode=text) == {"ids": joint.encode(text).ids}


def test_words_end_where_the_librarys_pattern_ends_them(native: TextLines, example_dir: Path) -> None:
    """Every code point beside letters, numbers, spaces, line breaks and other signs."""
    raw = json.loads((example_dir / "tokenizer.json").read_text(encoding="utf-8"))
    pattern = raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    splitter = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    characters = list(map(chr, CODE_POINTS))
    beside_all = [f"a{c}1{c} {c}\n{c}!{c}{c}'{c}" for c in characters[:0x3100]]
    beside_few = [f"{c}a {c}1" for c in characters[0x3100:]]
    for text in ("".join(beside_all), "".join(beside_few)):
        ends, end = [], 0
        for piece, _ in splitter.pre_tokenize_str(text):
            end += len(piece.encode())
            ends.append(end)
        assert native.ask(words=text)["ends"] == ends


def test_nfc_of_every_code_point(native: TextLines) -> None:
    nfc = normalizers.NFC()
    characters = list(map(chr, CODE_POINTS))
    alone = "".join(f"a{c}\u0334\u0345" for c in characters)
    assert native.ask(nfc=alone)["text"] == nfc.normalize_str(alone)
    for before in ("a\u0301\u0316", "か", "가", "\u1100", "\u0f71"):
        text = "".join(f"{before}{c}" for c in characters[:0x3100])
        assert native.ask(nfc=text)["text"] == nfc.normalize_str(text)


def test_compositions_behind_every_starter(native: TextLines) -> None:
    nfc = normalizers.NFC()
    for mark in "\u0300\u0301\u0308\u0323\u0338\u0345\u3099\u11a8\u1161":
        text = "".join(f"{c}{mark}{c}\u0327{mark}" for c in map(chr, CODE_POINTS[:0x3100]))
        assert native.ask(nfc=text)["text"] == nfc.normalize_str(text)
    for mark in "\u0301\u0338\U00011930\U000110ba\U0001d165":
        text = "".join(f"{c}{mark}" for c in map(chr, CODE_POINTS[0x3100:0x20000]))
        assert native.ask(nfc=text)["text"] == nfc.normalize_str(text)


def test_bytes_that_are_no_text_are_refused(native: TextLines, example_dir: Path) -> None:
    native.ask(load=str(example_dir / "tokenizer.json"))
    for bad in (b"ab\x80", b"ab\xc3", b"ab\xed\xa0\x80", b"ab\xc0\x80", b"ab\xf4\x90\x80\x80", b"ab\xff"):
        for request in ("encode", "encode_text"):
            answer = native.ask(**{request: list(bad)})
            assert (answer["status"], answer["message"]) == (2, "the text is not valid UTF-8 at byte 2")


@pytest.mark.parametrize("skip", [True, False])
def test_decoding_and_streaming(native: TextLines, qwen2_file: Path, example_dir: Path, skip: bool) -> None:
    generator = random.Random(11)
    for path in (qwen2_file, example_dir / "tokenizer.json"):
        python = Tokenizer.from_directory(path.parent)
        native.ask(load=str(path))
        for number in range(600):
            if number % 2:  # any ids, with broken characters and ids without a token
                ids = [generator.randrange(python.size + 50) for _ in range(generator.randint(0, 30))]
            else:
                ids = python.encode(random_text(generator))
            assert native.ask(decode=ids, skip_special=skip)["text"] == python.decode(
                ids, skip_special_tokens=skip
            )
            stream = python.stream(skip_special_tokens=skip)
            pieces = [stream.push(token) for token in ids]
            expected = {"pieces": pieces, "rest": stream.finish()}
            assert native.ask(stream=ids, skip_special=skip) == expected


def random_prompt(generator: random.Random) -> tuple[Any, list[int]]:
    """A plain prompt or messages, with a number of images that is right most of the time."""
    if generator.random() < 0.5:
        places = generator.randint(0, 3)
        tiles = random_tiles(generator, places)
        prompt = random_text(generator)
        for number in range(places):
            prompt += random_image(generator, tiles[number]) + random_text(generator)
        return prompt, tiles
    turns = generator.choice([["user"], ["system", "user"], ["user", "assistant", "user"], ["user", "user"]])
    messages: list[dict[str, Any]] = []
    places = 0
    for role in turns:
        parts: list[dict[str, str]] = []
        for _ in range(generator.randint(0, 4)):
            if role == "user" and generator.random() < 0.4:
                parts.append({"type": "image"})
                places += 1
            else:
                text = generator.choice(["", "\n", "\n\n", "a"]) + random_text(generator)
                parts.append({"type": "text", "text": text})
        plain = generator.random() < 0.2 and all(part["type"] == "text" for part in parts)
        content: Any = "".join(part["text"] for part in parts) if plain else parts
        messages.append({"role": role, "content": content})
    return messages, random_tiles(generator, places)


def random_image(generator: random.Random, tiles: int) -> str:
    """Mostly a marker, else an image that is written out, with tags that are its own most of the time."""
    if generator.random() < 0.8:
        return "<image>"
    tags = [f"<tile_{k}>" for k in range(1, tiles)]
    if generator.random() < 0.2:
        generator.shuffle(tags)
    tags = [tags, [], [*tags, "<tile_9>"]][generator.choices(range(3), [8, 1, 1])[0]]
    glue = generator.choice(["", "\n", "<|vision_pad|>", "x"])
    return "<Image>" + glue.join([*tags, "<tile_global_thumbnail>"]) + "</Image>"


def random_tiles(generator: random.Random, places: int) -> list[int]:
    if generator.random() < 0.05:
        places += 1
    return [generator.choice([1, 2, 3, 7, 12]) for _ in range(places)]


def prompt_json(builder: PromptBuilder, prompt: Any, tiles: list[int]) -> dict[str, Any]:
    """What the native runtime must answer."""
    try:
        built = builder.build(prompt, tiles)
    except NvlmError as error:
        return {"status": error.exit_code, "message": error.message}
    result: dict[str, Any] = {
        "input_ids": built.input_ids.tolist(),
        "visual_positions": built.visual_positions.tolist(),
        "text": built.text,
    }
    if built.cross is not None:
        result["cross"] = {
            "tiles": built.cross.tiles.tolist(),
            "sequence_tiles": built.cross.sequence_tiles.tolist(),
            "tags": [tag.tolist() for tag in built.cross.tags],
            "visible": built.cross.visible.tolist(),
        }
    return result


def settings_json(builder: PromptBuilder) -> dict[str, Any]:
    config = builder.config
    return {
        "variant": config.variant,
        "mode": builder.mode,
        "visual_tokens_per_tile": config.visual_tokens_per_tile,
        "vocab_size": config.language.vocab_size,
        "thumbnail_tag": config.thumbnail_tag,
    }


@pytest.mark.parametrize("mode", ["hf", "megatron"])
@pytest.mark.parametrize("variant", ["D", "X", "H"])
def test_prompts(native: TextLines, example_dir: Path, variant: Any, mode: Any) -> None:
    config = replace(NvlmConfig.from_directory(example_dir), variant=variant)
    builder = PromptBuilder(Tokenizer.from_directory(example_dir), config, mode)
    native.ask(load=str(example_dir / "tokenizer.json"))
    generator = random.Random(f"{variant} {mode}")
    refused = 0
    for _ in range(200):
        prompt, tiles = random_prompt(generator)
        expected = prompt_json(builder, prompt, tiles)
        answer = native.ask(prompt=prompt, tiles=tiles, settings=settings_json(builder))
        assert {key: answer[key] for key in expected} == expected, (prompt, tiles)
        assert ("hint" in answer) == ("status" in expected)
        refused += "status" in expected
    assert 0 < refused < 50


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


IMAGE = {"type": "image"}
BAD_MESSAGES: list[Any] = [
    [],
    [5],
    [{"role": "user"}],
    [{"content": "x"}],
    [{"role": "user", "content": "x", "name": "y"}],
    [{"role": "robot", "content": "x"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": {"type": "image"}}],
    [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}, {"role": "user", "content": "x"}],
    [{"role": "system", "content": [IMAGE]}, {"role": "user", "content": "x"}],
    user("x"),
    user({"text": "x"}),
    user({"type": "audio"}),
    user({"type": "text"}),
    user({"type": "text", "text": 5}),
    user({"type": "text", "text": True}),
    user({"type": "text", "text": 0.5}),
    user({"type": "text", "text": "x", "image": "y"}),
    user({"type": "image", "text": "x"}),
]


@pytest.mark.parametrize("messages", BAD_MESSAGES)
def test_malformed_messages(native: TextLines, example_dir: Path, messages: Any) -> None:
    config = NvlmConfig.from_directory(example_dir)
    builder = PromptBuilder(Tokenizer.from_directory(example_dir), config)
    native.ask(load=str(example_dir / "tokenizer.json"))
    expected = prompt_json(builder, messages, [])
    answer = native.ask(prompt=messages, tiles=[], settings=settings_json(builder))
    assert {key: answer[key] for key in ("status", "message")} == expected


def test_other_refusals_of_prompts(native: TextLines, example_dir: Path) -> None:
    config = NvlmConfig.from_directory(example_dir)
    builder = PromptBuilder(Tokenizer.from_directory(example_dir), config)
    native.ask(load=str(example_dir / "tokenizer.json"))
    settings = settings_json(builder)
    cases: list[tuple[Any, list[int]]] = [
        ("x", [0]),
        ("<image>", [2, -1]),
        (user(IMAGE), []),
        ("x <image>", []),
    ]
    for prompt, tiles in cases:
        answer = native.ask(prompt=prompt, tiles=tiles, settings=settings)
        assert {key: answer[key] for key in ("status", "message")} == prompt_json(builder, prompt, tiles)
    assert native.ask(prompt="x", tiles=[], settings={**settings, "mode": "megatro"})["status"] == 2
    answer = native.ask(prompt="x", tiles=[], settings={**settings, "vocab_size": 100})
    assert answer["message"] == "the tokenizer has 394 tokens, but the model's vocab_size is 100"
    assert native.ask(prompt={"role": "user"}, tiles=[], settings=settings)["status"] == 2


def test_images_of_messages(native: TextLines) -> None:
    messages: Any = user(IMAGE, {"type": "image", "image": "a.png"}, {"type": "image", "image": None})
    assert native.ask(images=messages, passed=2) == {"images": [0, "a.png", 1]}
    assert gather_images(messages, ["first", "second"]) == ("first", "a.png", "second")
    for passed in (0, 1, 3):
        with pytest.raises(NvlmError) as caught:
            gather_images(messages, ["x"] * passed)
        assert native.ask(images=messages, passed=passed)["message"] == caught.value.message
    assert native.ask(images=user({"type": "image", "image": 5}))["status"] == 2
