"""Prompts in the making, a class for each variant: where tags and placeholders go, and who sees what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.preprocess.prompt import CrossPrompt, Prompt, TokenizationMode
from nvlm_deploy.preprocess.tokenizer import IMAGE_TOKEN, TURN_END, TURN_START, Tokenizer


class Assembly:
    """A prompt in the making: text is collected and encoded jointly up to the next special token."""

    def __init__(self, tokenizer: Tokenizer, config: NvlmConfig, mode: TokenizationMode) -> None:
        self._tokenizer = tokenizer
        self._tokens_per_tile = config.visual_tokens_per_tile
        self._thumbnail_tag = config.thumbnail_tag
        self._megatron = mode == "megatron"
        self._ids: list[int] = []
        self._visual_positions: list[int] = []
        self._pending: list[str] = []
        self._texts: list[str] = []

    def open_turn(self, role: str) -> None:
        self._add_special(TURN_START)
        self.add_text(f"{role}\n")

    def close_turn(self) -> None:
        self._add_special(TURN_END)
        if self._megatron:
            self.add_text("\n")

    def add_text(self, text: str) -> None:
        """Text that is only text."""
        self._pending.append(text)

    def add_marked_text(self, text: str) -> None:
        """Text whose special tokens act, except for the image placeholder."""
        for piece, special in self._tokenizer.split_special(text):
            if special and piece != IMAGE_TOKEN:
                self._add_special(piece)
            else:
                self.add_text(piece)

    def add_image(self, tiles: int) -> None:
        """`<Image>`, tags and placeholders, `</Image>`; tags count from 1 in every image."""
        self.add_text("<Image>")
        if self._megatron:
            self._encode_pending()
        for tag in self.written_tags(tiles):
            self.add_text(tag)
            self._encode_pending()
            self._add_placeholders()
        self.add_text("</Image>")

    def written_tags(self, tiles: int) -> list[str]:
        """The tags that stand in the text for an image of so many tiles, thumbnail included."""
        return [tile_tag(k) for k in range(1, tiles)] + [self._thumbnail_tag]

    def _add_placeholders(self) -> None:
        """Hold the places of one tile's visual tokens."""
        start = len(self._ids)
        self._visual_positions.extend(range(start, start + self._tokens_per_tile))
        self._ids.extend([self._tokenizer.image_token_id] * self._tokens_per_tile)
        self._texts.append(IMAGE_TOKEN * self._tokens_per_tile)

    def finish(self) -> Prompt:
        self._encode_pending()
        return Prompt(
            input_ids=np.array(self._ids, dtype=np.int64),
            visual_positions=np.array(self._visual_positions, dtype=np.int64),
            text="".join(self._texts),
        )

    def _add_special(self, token: str) -> None:
        self._encode_pending()
        self._ids.append(self._tokenizer.special_id(token))
        self._texts.append(token)

    def _encode_pending(self) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        self._ids.extend(self._tokenizer.encode_text(text))
        self._texts.append(text)


class _CrossAssembly(Assembly):
    """Keeps account of which tiles go to cross-attention and which of them each token sees."""

    def __init__(self, tokenizer: Tokenizer, config: NvlmConfig, mode: TokenizationMode) -> None:
        super().__init__(tokenizer, config, mode)
        self._tiles: list[int] = []
        self._sequence_tiles: list[int] = []
        self._tags: list[npt.NDArray[np.int64]] = []
        self._visible: list[tuple[int, int]] = []
        self._sees = (0, 0)

    def finish(self) -> Prompt:
        self._look_at(*self._sees)
        cross = CrossPrompt(
            tiles=np.array(self._tiles, dtype=np.int64),
            sequence_tiles=np.array(self._sequence_tiles, dtype=np.int64),
            tags=tuple(self._tags),
            visible=np.array(self._visible, dtype=np.int64).reshape(-1, 2),
        )
        return replace(super().finish(), cross=cross)

    def _look_at(self, first: int, end: int) -> None:
        """What is added from now on sees the tiles [first, end) of those in cross-attention."""
        self._encode_pending()
        self._visible += [self._sees] * (len(self._ids) - len(self._visible))
        self._sees = (first, end)

    @property
    def _num_tiles(self) -> int:
        return len(self._tiles) + len(self._sequence_tiles)


class _TextAssembly(_CrossAssembly):
    """NVLM-X: tags are text, each tokenized apart, so that its tokens are its own and see its own tile."""

    def add_image(self, tiles: int) -> None:
        self.add_text("<Image>")
        for tag in self.written_tags(tiles):
            self._tiles.append(self._num_tiles)
            self._look_at(len(self._tiles) - 1, len(self._tiles))
            self.add_text(tag)
        self._look_at(0, len(self._tiles))
        self.add_text("</Image>")


class _HybridAssembly(_CrossAssembly):
    """NVLM-H: thumbnail and its tag in the sequence; tags of regular tiles beside those, among the keys."""

    def add_image(self, tiles: int) -> None:
        self.add_text("<Image>")
        if self._megatron:
            self._encode_pending()
        for k in range(1, tiles):
            self._tiles.append(self._num_tiles)
            self._tags.append(np.array(self._tokenizer.encode_text(tile_tag(k)), dtype=np.int64))
        self._sequence_tiles.append(self._num_tiles)
        self.add_text(self._thumbnail_tag)
        self._encode_pending()
        self._add_placeholders()
        self._look_at(0, len(self._tiles))
        self.add_text("</Image>")

    def written_tags(self, tiles: int) -> list[str]:
        """The thumbnail's alone."""
        return [self._thumbnail_tag]


def tile_tags(tokenizer: Tokenizer, config: NvlmConfig) -> tuple[tuple[int, ...], ...]:
    """Ids of the tags whose embeddings stand among keys: `<tile_1>`, ... of NVLM-H; none of the others."""
    if config.variant != "H":
        return ()
    return tuple(tuple(tokenizer.encode_text(tile_tag(k))) for k in range(1, config.max_tiles + 1))


def tile_tag(number: int) -> str:
    return f"<tile_{number}>"


ASSEMBLIES: dict[Variant, type[Assembly]] = {"D": Assembly, "X": _TextAssembly, "H": _HybridAssembly}
