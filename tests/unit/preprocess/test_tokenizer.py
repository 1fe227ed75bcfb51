"""The tokenizer: text as text, special tokens found apart, streaming without broken characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess import Tokenizer

from .conftest import SMALL, SPECIAL, TEXTS, TOKENIZER_FILE

JOINT = tokenizers.Tokenizer.from_file(str(TOKENIZER_FILE))


def edited(change: dict[str, Any]) -> str:
    """The small tokenizer's JSON with added tokens changed, {text: {key: value}}, or removed (None)."""
    raw = json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
    for token in list(raw["added_tokens"]):
        if token["content"] in change:
            values = change[token["content"]]
            if values is None:
                raw["added_tokens"].remove(token)
            else:
                token.update(values)
    return json.dumps(raw)


def write_vocabulary(directory: Path) -> None:
    """The small tokenizer in the files of the released repository: vocab.json and merges.txt."""
    raw = json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    added = {str(t.pop("id")): t for t in raw["added_tokens"]}
    settings_ = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": added,
    }
    (directory / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_encode_equals_joint_tokenization(text: str) -> None:
    assert SMALL.encode(text) == JOINT.encode(text).ids


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_text_is_text(text: str) -> None:
    ids = SMALL.encode_text(text)
    assert max(ids, default=0) < 700  # the special tokens' ids begin there
    if not any(token in text for token in SPECIAL):
        assert ids == JOINT.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_split_special_is_a_partition(text: str) -> None:
    pieces = list(SMALL.split_special(text))
    assert "".join(piece for piece, _ in pieces) == text
    assert all((piece in SPECIAL) == special for piece, special in pieces)


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.turn_start_id, tokenizer.turn_end_id, tokenizer.image_token_id) == (701, 702, 705)
    assert tokenizer.eos_id == 702
    assert tokenizer.special_id("<|endoftext|>") == 700
    assert tokenizer.size == 706


def test_the_longest_special_token_wins() -> None:
    longer = Tokenizer(edited({"<|vision_start|>": {"content": "<|im_end|>s"}}))
    assert longer.encode("<|im_end|>s<|im_end|>") == [703, 702]


def test_decode_skips_special_tokens_on_demand() -> None:
    ids = SMALL.encode("the end<|im_end|>")
    assert SMALL.decode(ids) == "the end"
    assert SMALL.decode(ids, skip_special_tokens=False) == "the end<|im_end|>"
    assert SMALL.decode([767]) == ""  # an embedding row without a token


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        SMALL.encode("a\ud800")


def test_saving_and_reading_changes_nothing(tmp_path: Path) -> None:
    path = SMALL.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    again = Tokenizer.from_directory(tmp_path)
    text = "the <|im_end|> é😀 <tile_1>"
    assert again.encode(text) == SMALL.encode(text)
    assert again.encode_text(text) == SMALL.encode_text(text)


def test_truncation_and_padding_settings_do_not_act() -> None:
    raw = json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
    backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    assert Tokenizer(backend.to_str()).encode("the end of the text") == SMALL.encode("the end of the text")


def test_vocabulary_and_merges_are_converted(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    converted = Tokenizer.from_directory(tmp_path)
    text = "<|im_start|>user\n<Image><tile_1><|vision_pad|></Image>\nIt's 42 é 😀  x<|im_end|>"
    assert converted.encode(text) == SMALL.encode(text)
    assert converted.size == SMALL.size
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(NvlmError, match=r"vocab\.json and merges\.txt cannot be read"):
        Tokenizer.from_directory(tmp_path)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        NvlmError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"
    ) as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("token", ["<|vision_pad|>", "<|im_end|>", "<|im_start|>"])
@pytest.mark.parametrize("change", [None, {"content": "<|other|>"}, {"special": False}])
def test_a_template_token_that_is_missing(token: str, change: dict[str, Any] | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(edited({token: change}), encoding="utf-8")
    with pytest.raises(NvlmError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert caught.value.message == f"{path} has no special token {token}"
    assert "nvidia/NVLM-D-72B" in str(caught.value.hint)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_special_tokens_that_change_their_surroundings_are_refused(flag: str) -> None:
    with pytest.raises(NvlmError, match=r"<\|im_end\|> changes the text around it"):
        Tokenizer(edited({"<|im_end|>": {flag: True}}))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff\xfe\x00", b'{"version": "1.0", "model": 3}'])
def test_a_file_that_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(NvlmError, match=r"tokenizer\.json (is not a valid tokenizer|cannot be read)"):
        Tokenizer.from_directory(tmp_path)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 767), max_size=40), st.booleans())
def test_streamed_pieces_join_to_the_whole_text(ids: list[int], skip: bool) -> None:
    stream = SMALL.stream(skip_special_tokens=skip)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == SMALL.decode(ids, skip_special_tokens=skip)
    assert stream.finish() == ""


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet=st.sampled_from("a é€漢字😀👩\u200d🚀\u0301ß\n"), max_size=12), st.data())
def test_no_piece_holds_a_broken_character(text: str, draw: st.DataObject) -> None:
    ids = SMALL.encode_text(text)
    cut = draw.draw(st.integers(0, len(ids)))
    stream = SMALL.stream()
    emitted = "".join(stream.push(token) for token in ids[:cut])
    assert "\ufffd" not in emitted
    assert SMALL.decode(ids).startswith(emitted)
    so_far = SMALL.decode(ids[:cut])
    if not so_far.endswith("\ufffd"):
        assert emitted == so_far  # nothing is held back longer than a character takes


def test_a_decoder_that_strips_the_start_of_a_text_strips_no_piece() -> None:
    raw = json.loads(TOKENIZER_FILE.read_text(encoding="utf-8"))
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    raw["decoder"] = {"type": "Sequence", "decoders": [raw["decoder"], strip]}
    tokenizer = Tokenizer(json.dumps(raw))
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode_text(" the end of the text")]
    assert "".join(pieces) == "the end of the text"


def test_an_answer_cut_inside_a_character_ends_like_decode() -> None:
    ids = SMALL.encode_text("x😀")[:-1]
    stream = SMALL.stream()
    assert "".join(stream.push(token) for token in ids) == "x"
    assert "x" + stream.finish() == SMALL.decode(ids)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        *[(f"<tile_{k}>", [27, 21094, 62, 15 + k, 29]) for k in range(1, 10)],
        ("<tile_global_thumbnail>", [27, 21094, 19296, 37824, 29]),
        ("<tile_global>", [27, 21094, 19296, 29]),
        ("<Image>", [46465, 29]),
        ("</Image>", [522, 1906, 29]),
        ("</Image>\n", [522, 1906, 397]),
        ("<Image><tile_1>", [46465, 1784, 21094, 62, 16, 29]),
        ("user\n", [872, 198]),
        ("assistant\n", [77091, 198]),
        ("system\n", [8948, 198]),
        ("Answer the questions.", [16141, 279, 4755, 13]),
        ("<|im_start|><|im_end|><|vision_pad|>", [151644, 151645, 151654]),
    ],
)
def test_ids_of_the_real_vocabulary(qwen2: Tokenizer, text: str, ids: list[int]) -> None:
    assert qwen2.encode(text) == ids


def test_added_tokens_that_are_not_special_stay_vocabulary(qwen2: Tokenizer) -> None:
    assert qwen2.encode_text("<tool_call>") == [151657]
    assert len(qwen2.encode_text("<|image_pad|>")) > 1
