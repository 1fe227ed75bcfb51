"""Chat messages: what is accepted, what is refused, and where images come from."""

from __future__ import annotations

from typing import Any

import pytest

from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess import gather_images
from nvlm_deploy.preprocess.messages import ImagePlace, parse_messages


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


TEXT = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("messages", "error", "hint"),
    [
        ([], "the last message is missing", "role 'user'"),
        (
            [user(TEXT), {"role": "assistant", "content": "x"}],
            "the last message comes from the assistant",
            "end",
        ),
        (
            [user(TEXT), {"role": "system", "content": "x"}, user(TEXT)],
            r"messages\[1\] is a system message",
            "first",
        ),
        (["hello"], r"messages\[0\] is a str", None),
        ([{"role": "user"}], r"messages\[0\] has no 'content'", "needed: role, content"),
        ([{"role": "usr", "content": "x"}], r"messages\[0\]\.role is 'usr'", "did you mean 'user'"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role is \['user'\]", "user"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content is a int", None),
        ([{"role": "user", "content": b"x"}], r"messages\[0\]\.content is a bytes", None),
        ([{"role": "user", "content": "x", "name": "n"}], "unknown key 'name'", "known"),
        ([user("text")], r"messages\[0\]\.content\[0\] is a str", "type 'text' or 'image'"),
        (
            [user(TEXT, {"type": "image_url"})],
            r"content\[1\] is of the type 'image_url'",
            "type 'text' or 'image'",
        ),
        ([user({"type": "text"})], r"content\[0\] has no 'text'", "needed: type, text"),
        ([user({"type": "text", "text": None})], r"content\[0\]\.text is a NoneType", None),
        ([user({"type": "image", "imag": "a.png"})], "unknown key 'imag'", "did you mean 'image'"),
        (
            [{"role": "system", "content": [IMAGE]}, user(TEXT)],
            "system message with an image",
            "user messages",
        ),
        ([{"role": "assistant", "content": [IMAGE]}, user(TEXT)], "assistant message with an image", "user"),
    ],
)
def test_malformed_messages_are_named(messages: Any, error: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        parse_messages(messages)
    assert (hint or "") in str(caught.value.hint)


def test_messages_become_turns() -> None:
    turns = parse_messages([{"role": "system", "content": "Be brief."}, user(IMAGE, TEXT)])  # type: ignore[list-item]
    assert [turn.role for turn in turns] == ["system", "user"]
    assert turns[0].parts == ("Be brief.",)
    assert isinstance(turns[1].parts[0], ImagePlace)
    assert turns[1].parts[1] == "What is it?"


def test_images_of_messages_come_in_the_order_of_their_places() -> None:
    messages: Any = [
        user(IMAGE, TEXT, {"type": "image", "image": "own.png"}),
        {"role": "assistant", "content": "A cat."},
        user(TEXT, IMAGE),
    ]
    assert gather_images(messages, ["first.png", "second.png"]) == ("first.png", "own.png", "second.png")


def test_images_of_a_plain_prompt_are_those_passed() -> None:
    assert gather_images("<image> and <image>", ["a.png", "b.png"]) == ("a.png", "b.png")
    assert gather_images("no image") == ()


@pytest.mark.parametrize("images", [[], ["a.png", "b.png"]])
def test_a_count_of_images_that_differs_is_an_error(images: list[str]) -> None:
    messages: Any = [user(IMAGE, TEXT)]
    with pytest.raises(UsageError, match=f"1 image parts without a source; images passed: {len(images)}"):
        gather_images(messages, images)
