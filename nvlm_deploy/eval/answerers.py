"""Who answers: an engine bundle, or the checkpoint itself in PyTorch, FP32."""

from __future__ import annotations

from pathlib import Path

import torch

from nvlm_deploy.config.manifest import MANIFEST_NAME
from nvlm_deploy.eval.exact_match import MAX_ANSWER_TOKENS, AnswerFunction
from nvlm_deploy.models import CrossTiles, Nvlm, load_model
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, normalize_tiles, tile_image
from nvlm_deploy.runtime import Engine
from nvlm_deploy.synthetic.documents import Sample


def open_answerer(source: Path) -> AnswerFunction:
    """Open a bundle or a checkpoint, whichever `source` is."""
    if (source / MANIFEST_NAME).exists():
        return engine_answerer(Engine.open(source))
    tokenizer = Tokenizer.from_directory(source)
    return model_answerer(load_model(source), tokenizer)


def engine_answerer(engine: Engine) -> AnswerFunction:
    """Answers of an engine, greedy."""

    def answer(sample: Sample) -> str:
        result = engine.generate(sample.question, [sample.image], max_new_tokens=MAX_ANSWER_TOKENS)
        return result.text

    return answer


def model_answerer(model: Nvlm, tokenizer: Tokenizer) -> AnswerFunction:
    """Answers of the reference model, greedy."""
    builder = PromptBuilder(tokenizer, model.config)

    def answer(sample: Sample) -> str:
        image = tile_image(sample.image, model.config)
        prompt = builder.build(sample.question, [len(image)])
        ids = torch.from_numpy(prompt.input_ids).unsqueeze(0)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, torch.from_numpy(prompt.visual_positions)] = True
        pixels = torch.from_numpy(normalize_tiles(image.tiles))
        output = model.generate(
            ids, pixels, mask, MAX_ANSWER_TOKENS, (tokenizer.eos_id,), CrossTiles.of([prompt])
        )
        return tokenizer.decode(output)

    return answer
