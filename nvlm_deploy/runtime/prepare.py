"""Requests made ready for any engine: images tiled, prompts tokenized, room for the answer known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.messages import gather_images
from nvlm_deploy.preprocess.prompt import Prompt
from nvlm_deploy.preprocess.tiles import TiledImage, preprocess_images
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.runtime.result import Request
from nvlm_deploy.runtime.timings import StageTimer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose images are tiled and whose prompt is tokenized."""

    request: Request
    images: tuple[TiledImage, ...]
    prompt: Prompt
    max_new_tokens: int


def prepare(bundle: Bundle, requests: Sequence[Request], timer: StageTimer) -> list[Prepared]:
    """Tile and tokenize.

    Raises:
        UsageError: images that do not fit the prompt, or a prompt longer than the context.
        NvlmError: an image that cannot be read.
    """
    prepared = []
    for request in requests:
        with timer.stage("tile"):
            sources = gather_images(request.prompt, request.images)
            images = tuple(preprocess_images(sources, bundle.config))
        with timer.stage("tokenize"):
            prompt = bundle.prompts.build(request.prompt, [len(image) for image in images])
        limit = _room(bundle.manifest.context, prompt, request.max_new_tokens)
        prepared.append(Prepared(request, images, prompt, limit))
    return prepared


def _room(context: int, prompt: Prompt, max_new_tokens: int) -> int:
    """Number of tokens that may follow `prompt` in the engine's context."""
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and the engine's context is {context}",
            hint="shorten the prompt, send fewer or less elongated images, or rebuild the engine with "
            "a larger context: --set target.max_context=N",
        )
    return min(max_new_tokens, context - len(prompt))
