"""Logits where a right answer is read along: what an engine thinks of every token of it.

Shapes: S tokens of a prompt with its answer, A tokens of the answer with the one that ends it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nvlm_deploy.backends import SessionOptions
from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.calibration.sample import CalibrationSample, build_sample
from nvlm_deploy.eval.prefill import Prefill, image_tiles
from nvlm_deploy.models import CrossTiles, Nvlm
from nvlm_deploy.preprocess import PromptBuilder, normalize_tiles
from nvlm_deploy.runtime.bundle import Bundle, open_sessions, open_tiles
from nvlm_deploy.runtime.encoder import ImageEncoder
from nvlm_deploy.runtime.image_cache import ImageCache
from nvlm_deploy.synthetic.documents import Document, Exchange

LogitsFunction = Callable[[CalibrationSample], npt.NDArray[np.float32]]
"""Logits [A, V] at the positions that predict the answer."""


def image_prompt(page: Document, exchange: Exchange, builder: PromptBuilder) -> CalibrationSample:
    """A question about a page that is shown."""
    content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": exchange.question}]
    return _sample(page.kind, content, exchange.answer, builder, [page.image])


def text_prompt(page: Document, exchange: Exchange, builder: PromptBuilder) -> CalibrationSample:
    """The same question with the text of the page in the place of its image."""
    return _sample(page.kind, f"{page.transcript}\n{exchange.question}", exchange.answer, builder, [])


def model_logits(model: Nvlm) -> LogitsFunction:
    """Logits of the reference model."""

    def logits(sample: CalibrationSample) -> npt.NDArray[np.float32]:
        ids = torch.from_numpy(sample.input_ids).unsqueeze(0)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(sample.visual_positions)] = True
        pixels = torch.from_numpy(normalize_tiles(sample.tiles)) if len(sample.tiles) else None
        with torch.inference_mode():
            visual = None if pixels is None else model.encode_tiles(pixels)
            tiles = CrossTiles.of([sample])
            hidden = model.hidden_states(ids, visual, mask, tiles=tiles)
            wanted = torch.from_numpy(_predicting(sample))
            logits_AV: torch.Tensor = model.language.logits(hidden[0, wanted])
        return logits_AV.numpy()

    return logits


def engine_logits(bundle: Bundle, options: SessionOptions) -> LogitsFunction:
    """Logits of an engine, whose sessions are opened here."""
    vision, decoder = open_sessions(bundle, options)
    encoder = ImageEncoder(bundle.config, vision, open_tiles(bundle, options), ImageCache(0))

    def logits(sample: CalibrationSample) -> npt.NDArray[np.float32]:
        images = [encoder.encode_tiles(tiles) for tiles in image_tiles(sample)]
        return Prefill.of(sample, images).logits(decoder, _predicting(sample))

    return logits


def _sample(
    label: str, content: Any, answer: str, builder: PromptBuilder, images: list[Any]
) -> CalibrationSample:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return build_sample(Conversation.of(label, messages, images), builder)


def _predicting(sample: CalibrationSample) -> npt.NDArray[np.int64]:
    return np.arange(sample.prompt_length - 1, len(sample) - 1)
