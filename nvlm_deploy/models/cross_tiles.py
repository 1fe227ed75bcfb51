"""Which tiles of a batch go to cross-attention, and what each position of the text sees of them.

Shapes: B batch, T positions, D hidden size, N tiles of the whole batch, C tiles among them that go to
cross-attention, M of them in the row that has most, G tokens of the longest tag, V visual tokens per tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.preprocess.prompt import CrossPrompt, TiledPrompt


@dataclass(frozen=True, slots=True)
class CrossTiles:
    """Index tensors, int64, for one batch.

    visible_BT2: position t of row b attends to the tiles [first, end) of its row.
    index_C: place of a tile among all N. row_C, rank_C: its row, and its number there, from 0.
    tags_CG: token ids that stand before a tile's visual tokens, padded by -1; G is 0 in NVLM-X.
    sequence_S: places among all N of the tiles that stand in the decoder's sequence instead.
    """

    visible_BT2: Tensor
    index_C: Tensor
    row_C: Tensor
    rank_C: Tensor
    tags_CG: Tensor
    sequence_S: Tensor

    @classmethod
    def of(cls, prompts: Sequence[TiledPrompt], length: int | None = None) -> CrossTiles | None:
        """Collect what prompts say; None if they are for a model without cross-attention.

        Args:
            prompts: one per row, with their tiles in order.
            length: T; by default that of the longest prompt.

        Raises:
            NvlmError: a token of a prompt sees tiles that the prompt does not have.
        """
        crosses = [prompt.cross for prompt in prompts if prompt.cross is not None]
        if len(crosses) != len(prompts):
            return None
        width = length or max(len(prompt) for prompt in prompts)
        # An answer behind the prompt sees what the last token sees; so does padding, which nobody reads.
        return cls.of_rows([[(cross, width)] for cross in crosses], width)

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[tuple[CrossPrompt, int]]], width: int) -> CrossTiles:
        """Collect what rows of several samples say.

        Args:
            rows: the samples of each row, and how many positions each takes; tokens behind its prompt see
                what the prompt's last one sees, positions behind all samples nothing.
            width: T.
        """
        visible_BT2 = torch.zeros(len(rows), width, 2, dtype=torch.int64)
        index: list[int] = []
        row: list[int] = []
        rank: list[int] = []
        tags: list[Any] = []
        sequence: list[int] = []
        first = 0
        for number, samples in enumerate(rows):
            start = seen = 0
            for cross, length in samples:
                _check_visible(number, cross)
                visible = torch.from_numpy(cross.visible) + seen
                prompt_end, end = start + len(visible), start + length
                visible_BT2[number, start:prompt_end] = visible
                visible_BT2[number, prompt_end:end] = visible[-1]
                index += [first + int(tile) for tile in cross.tiles]
                sequence += [first + int(tile) for tile in cross.sequence_tiles]
                row += [number] * len(cross.tiles)
                rank += range(seen, seen + len(cross.tiles))
                tags += list(cross.tags)
                first += len(cross.tiles) + len(cross.sequence_tiles)
                start, seen = end, seen + len(cross.tiles)
        longest = max((len(tag) for tag in tags), default=0)
        tags_CG = torch.full((len(index), longest), -1, dtype=torch.int64)
        for place, tag in enumerate(tags):
            tags_CG[place, : len(tag)] = torch.as_tensor(tag)
        integers = [torch.tensor(values, dtype=torch.int64) for values in (index, row, rank, sequence)]
        return cls(visible_BT2, integers[0], integers[1], integers[2], tags_CG, integers[3])

    @property
    def count(self) -> int:
        """N."""
        return len(self.index_C) + len(self.sequence_S)

    def to(self, device: torch.device) -> CrossTiles:
        """The same on another device."""
        return CrossTiles(*(getattr(self, each.name).to(device) for each in fields(self)))

    def memory(self, visual_NVD: Tensor) -> TileMemory | None:
        """Lay tiles out row by row; None if no tile goes to cross-attention.

        Args:
            visual_NVD: visual tokens of all tiles.
        """
        if not len(self.index_C):
            return None
        entries_CED = visual_NVD[self.index_C]
        used_CE = torch.ones(entries_CED.shape[:2], dtype=torch.bool, device=entries_CED.device)
        return TileMemory(self._by_row(entries_CED), self._tiles(used_CE))

    def tagged_memory(
        self, visual_NVD: Tensor, embed: Callable[[Tensor], Tensor], bind: bool
    ) -> TileMemory | None:
        """The same with the embeddings of its tag before each tile.

        Args:
            visual_NVD: visual tokens of all tiles.
            embed: token ids to embeddings.
            bind: also add the mean of a tag's embeddings to its tile's visual tokens.
        """
        if not len(self.index_C):
            return None
        visual_CVD, used_CG = visual_NVD[self.index_C], self.tags_CG >= 0
        tags_CGD = embed(self.tags_CG.clamp(min=0)).to(visual_CVD.dtype) * used_CG.unsqueeze(-1)
        visible_CV = torch.ones(visual_CVD.shape[:2], dtype=torch.bool, device=used_CG.device)
        memory = TileMemory(
            self._by_row(torch.cat([tags_CGD, visual_CVD], dim=1)),
            self._tiles(torch.cat([used_CG, visible_CV], dim=1)),
        )
        if bind:
            mean_C1D = tags_CGD.sum(dim=1, keepdim=True) / used_CG.sum(dim=1).view(-1, 1, 1)
            bound_CVD = mean_C1D.expand_as(visual_CVD)
            memory.bound_BLD = self._by_row(torch.cat([torch.zeros_like(tags_CGD), bound_CVD], dim=1))
        return memory

    def _by_row(self, entries_CED: Tensor) -> Tensor:
        """[C, E, D] -> [B, M * E, D], zeros where a row has fewer tiles."""
        laid_out = entries_CED.new_zeros(*self._grid(), *entries_CED.shape[1:])
        return laid_out.index_put((self.row_C, self.rank_C), entries_CED).flatten(1, 2)

    def _tiles(self, used_CE: Tensor) -> Tensor:
        """[C, E] -> [B, M * E]: the tile of each used entry, -1 for others."""
        numbers_CE = torch.where(used_CE, self.rank_C.unsqueeze(1), -1)
        tiles = numbers_CE.new_full((*self._grid(), used_CE.shape[1]), -1)
        return tiles.index_put((self.row_C, self.rank_C), numbers_CE).flatten(1)

    def _grid(self) -> tuple[int, int]:
        return self.visible_BT2.shape[0], int(self.rank_C.max()) + 1


def _check_visible(row: int, cross: CrossPrompt) -> None:
    first_S, end_S = cross.visible[:, 0], cross.visible[:, 1]
    wrong_S = (first_S < 0) | (end_S < first_S) | (end_S > len(cross.tiles))
    if wrong_S.any():
        token = int(wrong_S.argmax())
        raise NvlmError(
            f"row {row}: token {token} is to see the tiles [{first_S[token]}, {end_S[token]}), "
            f"and its prompt has {len(cross.tiles)} in cross-attention"
        )
