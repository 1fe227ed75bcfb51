"""Questions of one's own in the place of generated ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.probe_file import probe_prompts


@pytest.fixture
def contract(tiny_checkpoint: Path) -> Contract:
    return Contract(tiny_checkpoint)


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    Image.new("RGB", (168, 56), "red").save(folder / "wide.png")
    path = folder / "probes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


PICTURE = {"image": "wide.png", "question": "Which color?", "answer": "Red."}
TEXT = {"question": "Which color is snow?", "answer": "White."}


def test_prompts_are_those_of_the_file(contract: Contract, tmp_path: Path) -> None:
    found = PromptSet.from_file(contract, write(tmp_path, TEXT, PICTURE))
    assert [(prompt.label, prompt.row) for prompt in found.asked] == [
        ("probe 2", "probe"),
        ("probe 1", "text"),
    ]
    image = found.asked[0]
    assert len(image.sequence.tiles) == 4
    tokens = contract.prompt("Which color?", contract.tags(4)).input_ids.tolist()
    assert image.sequence.input_ids.tolist() == [*tokens, *contract.answer("Red.")[:-1]]
    assert [number for number, _ in found.swapped] == [0, 0]
    assert found.probed == (0, 1)


def test_texts_are_generated_if_there_are_none(contract: Contract, tmp_path: Path) -> None:
    found = PromptSet.from_file(contract, write(tmp_path, PICTURE))
    assert [prompt.row for prompt in found.asked] == ["probe", "text", "text"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": "wide.png", "question": "Which color?"}, r"probes\.jsonl:2 is no probe"),
        ({"image": "none.png", "question": "Which?", "answer": "None."}, r"none\.png"),
    ],
)
def test_lines_that_cannot_be_asked_are_named(
    contract: Contract, tmp_path: Path, line: dict[str, Any], said: str
) -> None:
    with pytest.raises(NvlmError, match=said):
        probe_prompts(contract, write(tmp_path, PICTURE, line))


def test_images_are_needed(contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match="no probe has an image"):
        probe_prompts(contract, write(tmp_path, TEXT))
    with pytest.raises(UsageError, match="do not exist"):
        probe_prompts(contract, tmp_path / "nothing.jsonl")
