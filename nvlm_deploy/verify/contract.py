"""The prompt and tile contracts once more, for no other purpose than to be compared with.

Nothing here comes from `nvlm_deploy.preprocess`: a fault in shared code would otherwise be on both sides of
every comparison. Written after the released code (README and modelling file of nvidia/NVLM-D-72B), and for
NVLM-X and NVLM-H, which were not released, after `docs/checkpoint-format.md`; Pillow and the `tokenizers`
library are all that is shared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from PIL import Image

from nvlm_deploy.errors import NvlmError

_PLACEHOLDER = "<|vision_pad|>"
_END = "<|im_end|>"
_SYSTEM = "<|im_start|>system\nAnswer the questions."
_USER = "<|im_start|>user\n"
_ASSISTANT = "<|im_start|>assistant\n"
# The released checkpoint has a Qwen2 decoder, the paper's 34B a Yi one, in llama's form.
_THUMBNAILS = {"Qwen2ForCausalLM": "<tile_global_thumbnail>", "LlamaForCausalLM": "<tile_global>"}


Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ContractTiles:
    """What goes to cross-attention besides the sequence, in NVLM-X and NVLM-H.

    attended: tiles, by number. in_sequence: the others. tags: ids of the tag among the keys of every attended
    tile; none in NVLM-X. visible: int64 [S, 2], the attended tiles [first, end) that each token sees.
    """

    attended: Int64
    in_sequence: Int64
    tags: tuple[Int64, ...]
    visible: Int64


@dataclass(frozen=True, slots=True, eq=False)
class ContractPrompt:
    """Token ids int64 [S], the placeholders' positions int64 [V], the first position behind the image, and
    where tiles go besides the sequence, None in NVLM-D."""

    input_ids: Int64
    visual_positions: Int64
    text_start: int
    cross: ContractTiles | None = None


class Contract:
    """What the released code makes of an image and a question, for one checkpoint or bundle."""

    def __init__(self, directory: Path, mode: str = "hf") -> None:
        """Read `config.json` and `tokenizer.json`; `mode` is the manifest's prompt mode."""
        config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.side = int(config["force_image_size"])
        self.max_tiles = int(config["max_dynamic_patch"])
        patches = (self.side // int(config["vision_config"]["patch_size"])) ** 2
        self.tokens_per_tile = int(patches * float(config["downsample_ratio"]) ** 2)
        self.variant = str(config["architectures"][0])[:6]
        self.thumbnail_tag = _THUMBNAILS[config["llm_config"]["architectures"][0]]
        self.newline_after_turn = mode == "megatron"
        self.tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.placeholder_id, self.end_id = self._id(_PLACEHOLDER), self._id(_END)

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise NvlmError(f"the tokenizer has no token {token}")
        return found

    def tags(self, tiles: int) -> list[str]:
        """Tags of an image's tiles, in order."""
        return [*(f"<tile_{number}>" for number in range(1, tiles)), self.thumbnail_tag]

    def exchangeable(self, tiles: int) -> int:
        """How many of an image's tags, from the first on, may stand in each other's places.

        In NVLM-H the thumbnail's is in the sequence, and those of other tiles among the keys.
        """
        return tiles - 1 if self.variant == "NVLM_H" else tiles

    def prompt(self, question: str, tags: Sequence[str] = ()) -> ContractPrompt:
        """Token ids of one question, after an image whose tiles have these tags if there are any."""
        end = _END + ("\n" if self.newline_after_turn else "")
        before = _SYSTEM + end + _USER + ("<Image>" if tags else "")
        after = ("</Image>\n" if tags else "") + question + end + _ASSISTANT
        if self.variant == "NVLM_X":
            return self._text_prompt(before, tags, after)
        placed = tags[-1:] if self.variant == "NVLM_H" else tags
        image = [f"{tag}{_PLACEHOLDER * self.tokens_per_tile}" for tag in placed]
        # In training the first tag is tokenized apart from `<Image>`; the released code reads one string.
        parts = [before, "".join(image) + after]
        texts = parts if tags and self.newline_after_turn else ["".join(parts)]
        ids = np.array([i for text in texts for i in self.encode(text)], np.int64)
        places = np.flatnonzero(ids == self.placeholder_id)
        text_start = int(places[-1]) + 1 if len(places) else 0
        cross = self._hybrid_tiles(tags, len(ids), text_start) if self.variant == "NVLM_H" else None
        return ContractPrompt(ids, places, text_start, cross)

    def _text_prompt(self, before: str, tags: Sequence[str], after: str) -> ContractPrompt:
        """NVLM-X: each tag is tokenized apart, and sees its tile; what comes behind sees all of them."""
        count = len(tags)
        pieces = [(before, (0, 0)), *((tag, (k, k + 1)) for k, tag in enumerate(tags)), (after, (0, count))]
        ids: list[int] = []
        visible: list[tuple[int, int]] = []
        text_start = 0
        for text, sees in pieces if tags else [(before + after, (0, 0))]:
            text_start = len(ids)
            ids += self.encode(text)
            visible += [sees] * (len(ids) - len(visible))
        cross = ContractTiles(np.arange(count), np.arange(0), (), np.array(visible, np.int64))
        return ContractPrompt(np.array(ids, np.int64), np.arange(0), text_start if tags else 0, cross)

    def _hybrid_tiles(self, tags: Sequence[str], length: int, text_start: int) -> ContractTiles:
        """NVLM-H: all tiles but the last are attended to, with their tags, by what comes behind the last."""
        regular = [np.array(self.encode(tag), np.int64) for tag in tags[:-1]]
        visible = np.zeros((length, 2), np.int64)
        visible[text_start:, 1] = len(regular)
        last = np.arange(len(regular), len(tags))
        return ContractTiles(np.arange(len(regular)), last, tuple(regular), visible)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it act."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer and of the end of its turn."""
        return [*self.encode(text), self.end_id]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows for an image of so many pixels."""
        grids = [
            (i, j)
            for i in range(1, self.max_tiles + 1)
            for j in range(1, self.max_tiles + 1)
            if i * j <= self.max_tiles
        ]
        best, best_difference = (1, 1), float("inf")
        for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(width / height - i / j)
            tie_for_larger = width * height > 0.5 * self.side * self.side * i * j
            if difference < best_difference or (difference == best_difference and tie_for_larger):
                best, best_difference = (i, j), difference
        return best

    def tiles(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """RGB tiles uint8 [T, side, side, 3]: row by row, and the thumbnail last if there are several."""
        rgb, side = image.convert("RGB"), self.side
        columns, rows = self.grid(*rgb.size)
        whole = rgb.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        pieces = []
        for number in range(columns * rows):
            left, top = number % columns * side, number // columns * side
            pieces.append(whole.crop((left, top, left + side, top + side)))
        if len(pieces) > 1:
            pieces.append(rgb.resize((side, side), Image.Resampling.BICUBIC))
        return np.stack([np.asarray(piece) for piece in pieces])
