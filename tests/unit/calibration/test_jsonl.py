"""The forms of a line, and where its images go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.jsonl import JsonlConversations, place_images

IMAGE = {"type": "image"}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def read(tmp_path: Path, *lines: dict[str, Any]) -> list[Conversation]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    conversations = JsonlConversations(path)
    return [conversations[index] for index in range(len(conversations))]


def test_a_question_with_its_answer(tmp_path: Path) -> None:
    (conversation,) = read(tmp_path, {"image": "below/a.png", "question": "What?", "answer": "fog"})
    assert conversation.prompt == ({"role": "user", "content": [IMAGE, text("What?")]},)
    assert conversation.answer == "fog"
    assert conversation.images == (tmp_path / "below" / "a.png",)


def test_a_question_alone(tmp_path: Path) -> None:
    (conversation,) = read(tmp_path, {"question": "What?"})
    assert (conversation.answer, conversation.images) == (None, ())
    assert conversation.prompt == ({"role": "user", "content": "What?"},)


def test_a_chat_keeps_its_system_message_and_its_turns(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "fog"},
        {"role": "user", "content": "And <image>?"},
        {"role": "assistant", "content": [text("no "), text("fog")]},
    ]
    (conversation,) = read(tmp_path, {"images": ["a.png", "/b.png"], "messages": messages})
    assert [message["role"] for message in conversation.prompt] == ["system", "user", "assistant", "user"]
    assert conversation.prompt[1]["content"] == [IMAGE, text("What?")]
    assert conversation.prompt[3]["content"] == [text("And "), IMAGE, text("?")]
    assert conversation.answer == "no fog"
    assert conversation.images == (tmp_path / "a.png", Path("/b.png"))


def test_a_part_may_bring_its_image(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{**IMAGE, "image": "a.png"}, IMAGE, text("Which?")]}]
    (conversation,) = read(tmp_path, {"image": "b.png", "messages": messages})
    assert conversation.images == (tmp_path / "a.png", tmp_path / "b.png")


def test_lines_are_found_again_behind_empty_and_long_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    questions = ["é" * 5000, "two", "😀"]
    lines = [json.dumps({"question": question}, ensure_ascii=False) for question in questions]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    conversations = JsonlConversations(path)
    assert [conversations[i].prompt[0]["content"] for i in (2, 0, 1)] == [questions[i] for i in (2, 0, 1)]
    assert [conversations[i].label for i in range(3)] == [f"{path}:{number}" for number in (1, 3, 5)]


@pytest.mark.parametrize(
    ("content", "images", "expected"),
    [
        ("What?", 0, "What?"),
        ("What?", 2, [IMAGE, IMAGE, text("What?")]),
        ([text("What?")], 1, [IMAGE, text("What?")]),
        ([text("What?"), IMAGE], 1, [text("What?"), IMAGE]),
        ("<image>", 1, [IMAGE]),
        ("a<image><image>b", 2, [text("a"), IMAGE, IMAGE, text("b")]),
        # In a list, text is text.
        ([text("<image>")], 1, [IMAGE, text("<image>")]),
    ],
)
def test_places_of_images(content: Any, images: int, expected: Any) -> None:
    (placed,) = place_images([{"role": "user", "content": content}], images)
    assert placed == {"role": "user", "content": expected}


def test_the_assistant_s_words_are_words() -> None:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<image>"}]
    assert place_images(messages, 0) == messages
