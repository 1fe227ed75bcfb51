"""What lmms-eval asks for, in this project's form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.eval.chats import GreedySettings, chat_messages
from nvlm_deploy.preprocess import gather_images

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")


def test_messages_keep_their_images_and_texts() -> None:
    image = Image.new("RGB", (8, 8))
    given: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "What?"}]},
    ]
    messages = chat_messages(given, "task")
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"] == [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    assert gather_images(messages) == (image,)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_videos_and_sounds_are_refused(kind: str) -> None:
    with pytest.raises(UnsuitableError, match=f"the task clips shows a {kind}"):
        chat_messages([{"role": "user", "content": [{"type": kind, "url": "x"}]}], "clips")


@pytest.mark.parametrize(
    ("generation", "settings"),
    [
        ({}, GreedySettings(1024, ())),
        ({"until": ["\n\n"], "max_new_tokens": 16}, GreedySettings(16, ())),
        ({"until": ["ASSISTANT:", "\n\n", ""]}, GreedySettings(1024, ("ASSISTANT:",))),
        ({"until": "###", "temperature": 0, "do_sample": True}, GreedySettings(1024, ("###",))),
        ({"temperature": 0.7, "do_sample": False, "num_beams": 1, "top_p": None}, GreedySettings(1024, ())),
    ],
)
def test_generation_settings(generation: dict[str, Any], settings: GreedySettings) -> None:
    assert GreedySettings.of(generation, "task") == settings


@pytest.mark.parametrize(
    ("generation", "what"), [({"temperature": 0.7}, "sampling"), ({"num_beams": 5}, "beams")]
)
def test_what_is_not_greedy_is_refused(generation: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsuitableError, match=f"the task t asks for {what}"):
        GreedySettings.of(generation, "t")


def test_the_entry_point_is_where_the_package_says(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    module, function = project["entry-points"]["lmms_eval.models"]["nvlm"].split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert f"def {function}()" in Path(spec.origin).read_text()
