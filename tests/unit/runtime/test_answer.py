"""One answer while it grows: released text, stop strings, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvlm_deploy.preprocess import Tokenizer
from nvlm_deploy.runtime.answer import Answer
from nvlm_deploy.runtime.result import Request


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_checkpoint)


def feed(
    tokenizer: Tokenizer, text: str, limit: int = 100, stop: tuple[str, ...] = ()
) -> tuple[Answer, list[str]]:
    """Let a model say `text` and end its turn."""
    answer = Answer(Request("?", stop=stop), tokenizer, limit)
    pieces = []
    for token in [*tokenizer.encode_text(text), tokenizer.eos_id]:
        logits = np.zeros(tokenizer.size, dtype=np.float32)
        logits[token] = 1
        pieces.append(answer.accept(logits))
    return answer, pieces


def test_turn_ends_without_its_token(tokenizer: Tokenizer) -> None:
    answer, pieces = feed(tokenizer, "42 €")
    assert (answer.text, answer.finish_reason) == ("42 €", "stop")
    assert tokenizer.eos_id not in answer.output_ids
    assert "".join(pieces) == "42 €"
    assert all("\ufffd" not in piece for piece in pieces)


def test_limit(tokenizer: Tokenizer) -> None:
    answer, pieces = feed(tokenizer, "abcdef", limit=4)
    assert (answer.text, answer.finish_reason, len(answer.output_ids)) == ("abcd", "length", 4)
    assert "".join(pieces) == "abcd"


def test_text_that_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    answer, pieces = feed(tokenizer, "one EN two END three", stop=("END",))
    assert answer.text == "".join(pieces) == "one EN two "
    assert answer.finish_reason == "stop"
    assert pieces[4:6] == ["", ""]


def test_earliest_stop_string_wins(tokenizer: Tokenizer) -> None:
    answer, _ = feed(tokenizer, "a.b,c", stop=(",", "."))
    assert answer.text == "a"
