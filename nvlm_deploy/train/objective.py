"""What is minimized: cross-entropy of the tokens that the assistant says.

Shapes: B sequences, T positions, D hidden size, C positions whose prediction counts, S sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvlm_deploy.models.nvlm import Nvlm
from nvlm_deploy.preprocess.answered import IGNORED_LABEL
from nvlm_deploy.train.data.batch import TrainBatch

# Logits of a large vocabulary are the largest tensor of a step, so that many positions have theirs at a time.
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over a micro-batch: `total` () with gradients; `by_source_S` and `tokens_S` without."""

    total: Tensor
    by_source_S: Tensor
    tokens_S: Tensor


class AnswerObjective(nn.Module):
    """The model and its loss as one module, so that sharding sees every use of a parameter.

    `forward` gives sums and no means: the trainer divides by the tokens of the whole step, over all
    micro-batches and processes, so the gradient is that of one big batch.
    """

    def __init__(self, model: Nvlm, num_sources: int, recompute: bool = False) -> None:
        super().__init__()
        self.model = model
        self.num_sources, self.recompute = num_sources, recompute

    def forward(self, batch: TrainBatch) -> LossSums:
        counted_BT = batch.targets_BT != IGNORED_LABEL
        losses_C = self._in_chunks(*self.counted(batch))
        sources_C = batch.sources_BT[counted_BT]
        sums = losses_C.new_zeros(self.num_sources).index_add(0, sources_C, losses_C.detach())
        tokens = torch.bincount(sources_C, minlength=self.num_sources)
        return LossSums(losses_C.sum(), sums, tokens)

    def counted(self, batch: TrainBatch) -> tuple[Tensor, ...]:
        """What losses are made of, a row for each position that counts: hidden states [C, D], targets [C]."""
        counted_BT = batch.targets_BT != IGNORED_LABEL
        return self.hidden_states(self.model, batch), batch.targets_BT[counted_BT]

    def losses(self, *counted: Tensor) -> Tensor:
        """The loss of each position [C], float32, from rows of `counted`."""
        hidden_CD, targets_C = counted
        logits = self.model.language.logits(hidden_CD)
        return F.cross_entropy(logits.float(), targets_C, reduction="none")

    def hidden_states(self, model: Nvlm, batch: TrainBatch) -> Tensor:
        """What a model makes of the positions that count, [C, D]."""
        visual = model.encode_tiles(batch.pixels_N3SS)
        hidden_BTD = model.hidden_states(
            batch.ids_BT, visual, batch.visual_mask_BT, tiles=batch.tiles, packing=batch.packing
        )
        return hidden_BTD[batch.targets_BT != IGNORED_LABEL]

    def _in_chunks(self, *counted: Tensor) -> Tensor:
        if not self.recompute:
            return self.losses(*counted)
        chunks = zip(*(each.split(_CHUNK) for each in counted), strict=True)
        return torch.cat([checkpoint(self.losses, *chunk, use_reentrant=False) for chunk in chunks])
