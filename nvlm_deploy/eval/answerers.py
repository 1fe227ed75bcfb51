"""Who answers: an engine bundle, or the checkpoint itself in PyTorch, FP32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.config.manifest import MANIFEST_NAME, EngineManifest, file_sha256
from nvlm_deploy.errors import UsageError
from nvlm_deploy.eval.exact_match import MAX_ANSWER_TOKENS, AnswerFunction
from nvlm_deploy.models import CrossTiles, Nvlm, load_model
from nvlm_deploy.preprocess import (
    ImageSource,
    Message,
    PromptBuilder,
    Tokenizer,
    gather_images,
    normalize_tiles,
    preprocess_images,
)
from nvlm_deploy.runtime import Engine
from nvlm_deploy.synthetic.documents import Sample


class Generator(Protocol):
    """The greedy answer to a prompt as `Engine.generate` takes it, up to a length or a stop string."""

    def __call__(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource],
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> str: ...


def open_generator(source: Path, device: str = "cpu") -> Generator:
    """Open a bundle, or a checkpoint, whichever `source` is.

    Raises:
        UsageError: a device for a checkpoint, which answers on the CPU.
        NvlmError: `source` is neither, or not in order.
    """
    if (source / MANIFEST_NAME).exists():
        return engine_generator(Engine.open(source, device=device))
    if device != "cpu":
        raise UsageError(f"a checkpoint answers on the CPU, not on {device}", hint="build an engine of it")
    tokenizer = Tokenizer.from_directory(source)
    return model_generator(load_model(source), tokenizer)


def model_identity(source: Path) -> dict[str, Any]:
    """What answers depend on, of a bundle or a checkpoint: digests of its files, or a fingerprint."""
    if (source / MANIFEST_NAME).exists():
        files = [(entry.path, entry.sha256) for entry in EngineManifest.read(source).files]
        return {"kind": "engine", "fingerprint": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
    Tokenizer.from_directory(source)
    return {
        "kind": "checkpoint",
        "fingerprint": ShardSet(source).fingerprint(),
        "tokenizer": file_sha256(source / "tokenizer.json"),
    }


def engine_generator(engine: Engine) -> Generator:
    """Answers of an engine."""

    def generate(
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource],
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> str:
        return engine.generate(prompt, images, max_new_tokens=max_new_tokens, stop=stop).text

    return generate


def model_generator(model: Nvlm, tokenizer: Tokenizer) -> Generator:
    """Answers of the reference model; a stop string cuts the finished answer."""
    builder = PromptBuilder(tokenizer, model.config)
    context = model.config.language.max_position_embeddings

    def generate(
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource],
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> str:
        tiled = preprocess_images(gather_images(prompt, images), model.config)
        built = builder.build(prompt, [len(image) for image in tiled])
        if len(built) >= context:
            raise UsageError(f"the prompt has {len(built)} tokens and the model's context is {context}")
        ids = torch.from_numpy(built.input_ids).unsqueeze(0)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(built.visual_positions)] = True
        pixels = None
        if tiled:
            pixels = torch.from_numpy(normalize_tiles(np.concatenate([image.tiles for image in tiled])))
        limit = min(max_new_tokens, context - len(built))
        tiles = CrossTiles.of([built])
        output = model.generate(ids, pixels, mask, limit, (tokenizer.eos_id,), tiles)
        text = tokenizer.decode(output)
        return text[: min([text.find(mark) for mark in stop if mark in text], default=len(text))]

    return generate


def open_answerer(source: Path) -> AnswerFunction:
    """Open what answers generated documents: a bundle or a checkpoint, whichever `source` is."""
    return _answerer(open_generator(source))


def engine_answerer(engine: Engine) -> AnswerFunction:
    """Answers of an engine to generated documents."""
    return _answerer(engine_generator(engine))


def model_answerer(model: Nvlm, tokenizer: Tokenizer) -> AnswerFunction:
    """Answers of the reference model to generated documents."""
    return _answerer(model_generator(model, tokenizer))


def _answerer(generate: Generator) -> AnswerFunction:
    def answer(sample: Sample) -> str:
        return generate(sample.question, [sample.image], MAX_ANSWER_TOKENS)

    return answer
