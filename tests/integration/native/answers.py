"""Requests answered by both runtimes, in Python and natively."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nvlm_deploy import Engine
from nvlm_deploy.errors import NvlmError

from .conftest import NativeEngine

Engines = tuple[Engine, NativeEngine]


def python_answer(engine: Engine, line: dict[str, Any]) -> dict[str, Any]:
    """What Python's engine answers to a line for engine_probe."""
    settings = {key: value for key, value in line.items() if key not in ("prompt", "messages", "images")}
    prompt = line["messages"] if "messages" in line else line["prompt"]
    return engine.generate(prompt, line.get("images", ()), **settings).to_dict()


def check_same(engines: Engines, **line: Any) -> dict[str, Any]:
    """Hold the native answer against Python's, all but times; return it."""
    python, native = engines
    expected, found = python_answer(python, line), native.ask(**line)
    assert "message" not in found, found
    assert list(found["timings_ms"]) == list(expected["timings_ms"])
    pieces = found.pop("pieces")
    assert "".join(pieces) == found["text"]
    for result in (expected, found):
        del result["timings_ms"]
    for place, other in zip(found["first_token_top"], expected["first_token_top"], strict=True):
        assert place.pop("logit") == pytest.approx(other.pop("logit"), rel=1e-6)
    assert found == expected
    return found


def check_same_refusal(engines: Engines, **line: Any) -> str:
    """Hold the native refusal against Python's; return its sentence."""
    python, native = engines
    with pytest.raises(NvlmError) as refused:
        python_answer(python, line)
    found = native.ask(**line)
    assert (found["status"], found["hint"]) == (refused.value.exit_code, refused.value.hint or "")
    # Numbers may be written with more zeros.
    assert re.sub(r"(\.\d)0+", r"\1", found["message"]) == refused.value.message
    return refused.value.message
