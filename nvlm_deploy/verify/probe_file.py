"""Questions of one's own to verify with: a JSONL file, in the form that calibration sets have.

Each line is one question, with or without one image, and its right answer. The prompts are made by the
independent contract, as those about generated pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.jsonl import JsonlConversations
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.preprocess.images import load_image
from nvlm_deploy.synthetic.documents import Exchange
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.prompts import VerifyPrompt, make_prompt


def probe_prompts(contract: Contract, path: Path) -> list[VerifyPrompt]:
    """The prompts of a file: those with an image first, then those of text alone.

    Raises:
        UsageError: there is no such file.
        NvlmError: a line is malformed or no single question with an answer, an image is broken, or none has
            an image; names the line.
    """
    if not path.is_file():
        raise UsageError(
            f"the probes {path} do not exist", hint="a bundle of nvlm-train has probes/probes.jsonl"
        )
    lines = JsonlConversations(path)
    prompts = [_prompt(contract, lines[number]) for number in range(len(lines))]
    pictured = [prompt for prompt in prompts if prompt.image is not None]
    if not pictured:
        raise NvlmError(
            f"{path}: no probe has an image", hint="what an image becomes cannot be verified by text"
        )
    return [*pictured, *(prompt for prompt in prompts if prompt.image is None)]


def single_question(conversation: Conversation) -> Exchange | None:
    """The question and answer of a conversation, if it is one question about at most one image before it."""
    if conversation.answer is None or not conversation.answer.strip() or len(conversation.prompt) != 1:
        return None
    content: Any = conversation.prompt[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if conversation.images:
        if len(conversation.images) > 1 or parts[0].get("type") != "image":
            return None
        parts = parts[1:]
    return Exchange("".join(str(part["text"]) for part in parts), conversation.answer)


def _prompt(contract: Contract, conversation: Conversation) -> VerifyPrompt:
    exchange = single_question(conversation)
    if exchange is None:
        raise NvlmError(
            f"{conversation.label} is no probe",
            hint='a line is {"image": FILE, "question": TEXT, "answer": TEXT}, the image optional',
        )
    label = f"probe {conversation.label.rpartition(':')[2]}"
    if not conversation.images:
        return make_prompt(contract, label, "text", exchange, None)
    image = load_image(conversation.images[0], label=conversation.label)
    return make_prompt(contract, label, "probe", exchange, image)
