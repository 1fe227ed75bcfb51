"""Tokenizer files that are broken, or say what the native tokenizer does not implement."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.preprocess import Tokenizer

from .conftest import TextLines

Change = Callable[[dict[str, Any]], object]


def split_of(raw: dict[str, Any]) -> dict[str, Any]:
    step: dict[str, Any] = raw["pre_tokenizer"]["pretokenizers"][0]
    return step


def add_merge(raw: dict[str, Any], merge: object) -> None:
    raw["model"]["merges"].append(merge)


UNSUPPORTED: dict[str, Change] = {
    "the pattern that splits words is not Qwen2's": lambda raw: split_of(raw)["pattern"].update(Regex=r"\s+"),
    "isolated and not inverted": lambda raw: split_of(raw).update(invert=True),
    "the pre-tokenizer does not end with ByteLevel": lambda raw: raw["pre_tokenizer"]["pretokenizers"].pop(),
    "there is no 'pre_tokenizer'": lambda raw: raw.update(pre_tokenizer=None),
    "the normalizer 'NFKC' is not supported": lambda raw: raw.update(normalizer={"type": "NFKC"}),
    "the decoder 'Fuse' is not supported": lambda raw: raw.update(decoder={"type": "Fuse"}),
    "there is no 'decoder'": lambda raw: raw.pop("decoder"),
    "there is no 'model'": lambda raw: raw.pop("model"),
    "model has no 'vocab'": lambda raw: raw["model"].pop("vocab"),
    "model has no 'merges'": lambda raw: raw["model"].pop("merges"),
    "model.type is 'Unigram'": lambda raw: raw["model"].update(type="Unigram"),
    "model.dropout is set": lambda raw: raw["model"].update(dropout=0.1),
    "model.byte_fallback is true": lambda raw: raw["model"].update(byte_fallback=True),
    "model.ignore_merges is true": lambda raw: raw["model"].update(ignore_merges=True),
    "model.end_of_word_suffix is set": lambda raw: raw["model"].update(end_of_word_suffix="</w>"),
    "an added token has 'lstrip'": lambda raw: raw["added_tokens"][0].update(lstrip=True),
    "<|im_start|> has the id 500, but the order of tokens gives it 389": lambda raw: raw["added_tokens"][
        1
    ].update(id=500),
    "has no special token <|im_end|>": lambda raw: raw["added_tokens"][2].update(special=False),
    "an added token lacks one of its seven settings": lambda raw: raw["added_tokens"][0].pop("normalized"),
    "merge 132 has 'Qq', which is not": lambda raw: add_merge(raw, ["Qq", "a"]),
    "a merge is not two tokens": lambda raw: add_merge(raw, "a b c"),
    "a merge does not have two tokens": lambda raw: add_merge(raw, ["a"]),
    "two tokens have the id 5": lambda raw: raw["model"]["vocab"].update({"!": 5}),
    "a token has the id -1": lambda raw: raw["model"]["vocab"].update({"Qq": -1}),
    "a token has the id 99999999": lambda raw: raw["model"]["vocab"].update({"Qq": 99999999}),
}


@pytest.fixture
def raw(example_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((example_dir / "tokenizer.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_is_not_implemented_is_refused(
    native: TextLines, raw: dict[str, Any], tmp_path: Path, message: str
) -> None:
    UNSUPPORTED[message](raw)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    answer = native.ask(load=str(path))
    assert answer["status"] == 1
    assert message in answer["message"]
    assert answer["message"].startswith(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the text ends too early"),
        (b"{", "the text ends too early"),
        (b"[]", "there is no object"),
        (b'{"model": 5}', "'model' is not an object"),
        (b'{"a": "\xff"}', "byte 7: the text is not valid UTF-8"),
        (b'{"a": "b', "a string has no end"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": "\\x"}', "unknown escape"),
        (b'{"a" 1}', "there is no ':'"),
        (b'{"a": 1 2}', "neither ',' nor '}'"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b"{} x", "there is more after the end"),
    ],
)
def test_what_is_no_json_is_refused(native: TextLines, tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text)
    answer = native.ask(load=str(path))
    assert answer["status"] == 1
    assert message in answer["message"]
    assert native.ask(load=str(tmp_path / "none.json"))["message"].endswith("none.json cannot be read")


def test_other_ways_to_write_the_same(native: TextLines, raw: dict[str, Any], tmp_path: Path) -> None:
    """Merges as strings and before the vocabulary, escapes in strings, a sequence of one normalizer."""
    model = raw["model"]
    raw["model"] = {"merges": [" ".join(merge) for merge in model["merges"]], "vocab": model["vocab"]}
    raw["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw, ensure_ascii=True, indent=1), encoding="utf-8")
    native.ask(load=str(path))
    text = "What is the total? <|im_end|> e\u0301 😀"
    assert native.ask(encode=text)["ids"] == Tokenizer.from_directory(tmp_path).encode(text)


def test_tokens_with_other_settings(native: TextLines, raw: dict[str, Any], tmp_path: Path) -> None:
    """Tokens that are looked for in the normal form, that overlap, and that begin with other characters."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        ("Ame\u0301lie", True, False),
        ("<|im", False, False),
        ("<|im_end|>x", False, False),
        ("é!", False, False),
    ]
    for number, (content, normalized, special) in enumerate(added):
        token = {"id": 394 + number, "content": content, "normalized": normalized, "special": special}
        raw["added_tokens"].append({**token, **flags})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert native.ask(load=str(path))["size"] == 398
    python = Tokenizer.from_directory(tmp_path)
    for text in ("Amélie Ame\u0301lie", "<|im<|im_end|>x<|im_e", "caf\u00e9! cafe\u0301!", "<|im_end|>"):
        assert native.ask(encode=text)["ids"] == python.encode(text)
        assert native.ask(encode_text=text)["ids"] == python.encode_text(text)


def test_mutated_files_are_read_or_refused(native: TextLines, example_dir: Path, tmp_path: Path) -> None:
    original = (example_dir / "tokenizer.json").read_bytes()
    generator = random.Random(3)
    path = tmp_path / "tokenizer.json"
    read = 0
    for _ in range(400):
        mutated = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(mutated))
            kind = generator.randrange(3)
            if kind == 0:
                mutated[place] = generator.choice(b'"[]{}:,\\09an\x00\xff')
            elif kind == 1:
                del mutated[place : place + generator.randint(1, 30)]
            else:
                mutated[place:place] = mutated[place : place + generator.randint(1, 30)]
        path.write_bytes(mutated)
        answer = native.ask(load=str(path))
        assert answer.get("status", 0) in (0, 1)
        if "status" not in answer:
            assert "ids" in native.ask(encode="What is the <|im_end|> total?")
            read += 1
    assert 0 < read < 400
