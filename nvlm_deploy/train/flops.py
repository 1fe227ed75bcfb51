"""Model FLOPs of training, for MFU: what the mathematics needs, whatever is computed twice.

A matrix of N numbers costs 2 N per token forward, 2 N for the gradient of its input where something before it
is trained, and 2 N for its own where it is trained. Attention costs 4 T H K forward per token that sees T
positions (scores and mixing), and twice that going back; a causal sample of S tokens sees S / 2 on average.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.train.data.sample import TrainSample

_SIDE = 1024


class FlopCounter:
    """FLOPs of samples on one model, by what of it is trained."""

    def __init__(self, model: Nvlm) -> None:
        """Count the matrices of each part once; `model` may be on the meta device."""
        config = model.config
        cross = [name for name, _ in model.named_modules() if name.endswith(".cross.attention")]
        self._config = config
        self._cross_layers = len(cross)
        decoder = [
            model.language.layers,
            *([model.language.lm_head] if hasattr(model.language, "lm_head") else []),
        ]
        sizes = [_matrices(part) for part in ([model.vision], [model.projector], decoder)]
        head = config.language.vocab_size * config.language.hidden_size
        if config.language.tie_word_embeddings:
            sizes[2] = (sizes[2][0] + head, sizes[2][1])
        # Keys and values of cross-attention work on tiles and not on text.
        self._keys = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if ".cross.attention.k_proj" in name or ".cross.attention.v_proj" in name
        )
        self._work = []
        before = False
        for total, trained in sizes:
            self._work.append(2 * total + (2 * total if before else 0) + 2 * trained)
            before = before or trained > 0
        self._deepest = [sizes[0][1] > 0, sum(trained for _, trained in sizes) > 0]

    def __call__(self, samples: Sequence[TrainSample]) -> float:
        """FLOPs of one training step on `samples`."""
        return sum(self._sample(sample) for sample in samples)

    def _sample(self, sample: TrainSample) -> float:
        vision, language = self._config.vision, self._config.language
        tiles, tokens = len(sample.tiles), len(sample)
        patches, visual = vision.num_positions, self._config.visual_tokens_per_tile
        tower = 4 * patches * vision.hidden_size * vision.num_layers * patches * tiles
        decoder = 4 * (tokens / 2) * language.q_size * language.num_layers * tokens
        seen = visual * (len(sample.answered.cross.tiles) if sample.answered.cross is not None else 0)
        if self._config.cross_attention is not None:
            decoder += 4 * seen * self._config.cross_attention.q_size * self._cross_layers * tokens
        keys = 6 * self._keys * (seen - tokens)
        return (
            self._work[0] * patches * tiles
            + self._work[1] * visual * tiles
            + self._work[2] * tokens
            + keys
            + tower * (3 if self._deepest[0] else 1)
            + decoder * (3 if self._deepest[1] else 1)
        )


def _matrices(parts: Sequence[nn.Module]) -> tuple[int, int]:
    """Numbers in matrices, and those of them that are trained; adapters count with what they are added to."""
    named = [pair for part in parts for pair in part.named_parameters()]
    # What peft trains a copy of is not computed with.
    matrices = [p for name, p in named if p.ndim >= 2 and "original_module." not in name]
    return sum(p.numel() for p in matrices), sum(p.numel() for p in matrices if p.requires_grad)


def measured_peak(device: torch.device, bf16: bool) -> float:
    """FLOP/s that a large matrix product reaches on `device` now: the peak where no data sheet's is given."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    side = _SIDE * (8 if device.type == "cuda" else 1)
    left = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        product = left @ left
        product[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
