"""Chat messages as people write them, checked and reduced to turns of text and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, cast

from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.preprocess.images import ImageSource

Role: TypeAlias = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class _RequiredPart(TypedDict):
    type: Literal["text", "image"]


class ContentPart(_RequiredPart, total=False):
    """`{"type": "text", "text": ...}` or `{"type": "image"}`, with the image's source in "image" or not."""

    text: str
    image: ImageSource


class Message(TypedDict):
    """One message of a chat; a plain string is the same as one text part."""

    role: Role
    content: str | Sequence[ContentPart]


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlace:
    """The place of an image in a message; without a source it is filled from the images passed apart."""

    source: ImageSource | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One checked message. Text is text: no marker or special token in it has a meaning."""

    role: Role
    parts: tuple[str | ImagePlace, ...]


def parse_messages(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Check messages and reduce them to turns.

    Raises:
        UsageError: a message is malformed, a system message is not the first, an image stands
            outside the user's messages, or the last message is not the user's.
    """
    turns = tuple(_parse_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    if not turns or turns[-1].role != "user":
        last = f"comes from the {turns[-1].role}" if turns else "is missing: there are no messages"
        raise UsageError(f"the last message {last}", hint="end the chat with a message of the role 'user'")
    for index, turn in enumerate(turns):
        if turn.role == "system" and index > 0:
            raise UsageError(
                f"messages[{index}] is a system message", hint="only the first message may be one"
            )
    return turns


def gather_images(
    prompt: str | Sequence[Message], images: Sequence[ImageSource] = ()
) -> tuple[ImageSource, ...]:
    """All images of a request, in the order of their places in the prompt.

    Image parts with a source bring their own; those without take the next of `images`. For a plain
    prompt string the result is `images`.

    Raises:
        UsageError: more or fewer `images` than image parts without a source.
    """
    if isinstance(prompt, str):
        return tuple(images)
    places = [part for turn in parse_messages(prompt) for part in turn.parts if isinstance(part, ImagePlace)]
    open_places = sum(place.source is None for place in places)
    if open_places != len(images):
        raise UsageError(
            f"the messages have {open_places} image parts without a source; images passed: {len(images)}",
            hint='give each image one part: {"type": "image"}, or {"type": "image", "image": FILE}',
        )
    remaining = iter(images)
    return tuple(next(remaining) if place.source is None else place.source for place in places)


def _parse_message(message: object, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} is a {type(message).__name__}, not an object with 'role' and 'content'")
    _check_keys(message, ("role", "content"), ("role", "content"), where)
    role = message["role"]
    if role not in ROLES:
        raise UsageError(f"{where}.role is {role!r}", hint=did_you_mean(str(role), ROLES))
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, (content,))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise UsageError(f"{where}.content is a {type(content).__name__}, not a string or a list of parts")
    parts = tuple(_parse_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if role != "user" and any(isinstance(part, ImagePlace) for part in parts):
        raise UsageError(f"{where} is a {role} message with an image", hint="images belong to user messages")
    return Turn(role, parts)


def _parse_part(part: object, where: str) -> str | ImagePlace:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image"):
        found = f"of the type {kind!r}" if isinstance(part, Mapping) else f"a {type(part).__name__}"
        raise UsageError(f"{where} is {found}", hint="a part is an object of the type 'text' or 'image'")
    if kind == "image":
        _check_keys(part, ("type",), ("type", "image"), where)
        return ImagePlace(cast("ImageSource | None", part.get("image")))
    _check_keys(part, ("type", "text"), ("type", "text"), where)
    if not isinstance(part["text"], str):
        raise UsageError(f"{where}.text is a {type(part['text']).__name__}, not a string")
    return str(part["text"])


def _check_keys(
    found: Mapping[str, Any], required: Sequence[str], allowed: Sequence[str], where: str
) -> None:
    for key in required:
        if key not in found:
            raise UsageError(f"{where} has no {key!r}", hint="needed: " + ", ".join(required))
    for key in found:
        if key not in allowed:
            raise UsageError(f"{where} has an unknown key {key!r}", hint=did_you_mean(str(key), allowed))
