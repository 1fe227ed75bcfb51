"""The prompt contract: a question or a chat, and the tiles of its images, become token ids.

The template is the released `chat`: every turn is `<|im_start|>role\\ntext<|im_end|>`, and an image is
`<Image>`, for each tile its tag and its placeholders, `</Image>`. Image positions are known because
they are counted while the prompt is built; ids are never searched for placeholders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean
from nvlm_deploy.preprocess.messages import ImagePlace, Message, Turn, parse_messages
from nvlm_deploy.preprocess.tokenizer import IMAGE_TOKEN, TURN_END, TURN_START, Tokenizer

TokenizationMode: TypeAlias = Literal["hf", "megatron"]

DEFAULT_SYSTEM_MESSAGE = "Answer the questions."
IMAGE_MARKER = "<image>"


@dataclass(frozen=True, slots=True, eq=False)
class CrossPrompt:
    """Where the tiles of a prompt for NVLM-X or NVLM-H go, and what its text sees of them.

    Attributes:
        tiles: int64 [C], places among the request's tiles of those that cross-attention attends to: all in
            NVLM-X, all but the thumbnails (or only tiles) of images in NVLM-H.
        sequence_tiles: int64, the other tiles, whose visual tokens stand in the sequence.
        tags: for each of the C tiles the ids, int64, of the tag whose embeddings stand before its visual
            tokens among keys and values; empty in NVLM-X, whose tags are text.
        visible: int64 [S, 2]; token s attends to tiles [first, end) of these C. Text sees all of the
            images before it, a tag of NVLM-X its own tile, and text before the first image nothing.
    """

    tiles: npt.NDArray[np.int64]
    sequence_tiles: npt.NDArray[np.int64]
    tags: tuple[npt.NDArray[np.int64], ...]
    visible: npt.NDArray[np.int64]


class TiledPrompt(Protocol):
    """A prompt, or one with its answer: text behind the prompt sees what the prompt's last token sees."""

    @property
    def cross(self) -> CrossPrompt | None: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt, ready for the decoder.

    Attributes:
        input_ids: int64 [S].
        visual_positions: int64 [V], ascending: where `input_ids` holds an image placeholder. The
            visual tokens of all tiles of all images, in order, go there.
        text: the expanded prompt, to be read by people.
        cross: where tiles go besides the sequence; None for NVLM-D.
    """

    input_ids: npt.NDArray[np.int64]
    visual_positions: npt.NDArray[np.int64]
    text: str
    cross: CrossPrompt | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


class PromptBuilder:
    """Builds prompts for one model.

    Modes: "hf" tokenizes as the released Hugging Face code, whose scores are published: the whole
    string at once, so that `<Image><tile_1>` merges `><` into one token, and no newline after
    `<|im_end|>`. "megatron" tokenizes as in training: the first tag of an image is tokenized apart
    from `<Image>`, and a newline follows every `<|im_end|>`.
    """

    def __init__(self, tokenizer: Tokenizer, config: NvlmConfig, mode: TokenizationMode = "hf") -> None:
        if mode not in get_args(TokenizationMode):
            raise UsageError(
                f"unknown tokenization mode {mode!r}",
                hint=did_you_mean(str(mode), get_args(TokenizationMode)),
            )
        if tokenizer.size > config.language.vocab_size:
            raise NvlmError(
                f"the tokenizer has {tokenizer.size:,} tokens, but the model's vocab_size is "
                f"{config.language.vocab_size:,}",
                hint="tokenizer and config.json must come from the same checkpoint",
            )
        self.tokenizer = tokenizer
        self.config = config
        self.mode = mode

    def build(self, prompt: str | Sequence[Message], tiles_per_image: Sequence[int] = ()) -> Prompt:
        """Build the ids of one prompt.

        Args:
            prompt: a plain prompt, or messages. In a plain prompt each `<image>` is the place of an
                image (without any, the images go first, each followed by a newline), and special
                tokens act as in the released code, except for the placeholder `<|vision_pad|>`,
                which is text. In messages all text is text; an image part stands for an image and
                a newline, and a newline that follows it is not doubled.
            tiles_per_image: number of tiles of each image, thumbnail included, in order.

        Raises:
            UsageError: the prompt has another number of images than `tiles_per_image`, or the
                messages are malformed.
        """
        if any(tiles < 1 for tiles in tiles_per_image):
            raise UsageError(f"every image has at least one tile, not {list(tiles_per_image)}")
        assembly = _ASSEMBLIES[self.config.variant](self.tokenizer, self.config, self.mode)
        if isinstance(prompt, str):
            self._add_plain(assembly, prompt, tiles_per_image)
        else:
            self._add_turns(assembly, parse_messages(prompt), tiles_per_image)
        assembly.open_turn("assistant")
        return assembly.finish()

    def _add_plain(self, assembly: _Assembly, prompt: str, tiles_per_image: Sequence[int]) -> None:
        if IMAGE_MARKER not in prompt:
            prompt = f"{IMAGE_MARKER}\n" * len(tiles_per_image) + prompt
        first, *others = prompt.split(IMAGE_MARKER)
        _check_image_count(f"the prompt has {len(others)} {IMAGE_MARKER}", len(others), tiles_per_image)
        _add_system(assembly, DEFAULT_SYSTEM_MESSAGE)
        assembly.open_turn("user")
        assembly.add_marked_text(first)
        for tiles, text in zip(tiles_per_image, others, strict=True):
            assembly.add_image(tiles)
            assembly.add_marked_text(text)
        assembly.close_turn()

    def _add_turns(self, assembly: _Assembly, turns: Sequence[Turn], tiles_per_image: Sequence[int]) -> None:
        places = sum(isinstance(part, ImagePlace) for turn in turns for part in turn.parts)
        _check_image_count(f"the messages have {places} image parts", places, tiles_per_image)
        if turns[0].role != "system":
            _add_system(assembly, DEFAULT_SYSTEM_MESSAGE)
        tiles = iter(tiles_per_image)
        for turn in turns:
            assembly.open_turn(turn.role)
            _add_parts(assembly, turn, tiles)
            assembly.close_turn()


class _Assembly:
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
        for tag in [_tag(k) for k in range(1, tiles)] + [self._thumbnail_tag]:
            self.add_text(tag)
            self._encode_pending()
            self._add_placeholders()
        self.add_text("</Image>")

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


class _CrossAssembly(_Assembly):
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
        for tag in [_tag(k) for k in range(1, tiles)] + [self._thumbnail_tag]:
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
            self._tags.append(np.array(self._tokenizer.encode_text(_tag(k)), dtype=np.int64))
        self._sequence_tiles.append(self._num_tiles)
        self.add_text(self._thumbnail_tag)
        self._encode_pending()
        self._add_placeholders()
        self._look_at(0, len(self._tiles))
        self.add_text("</Image>")


def tile_tags(tokenizer: Tokenizer, config: NvlmConfig) -> tuple[tuple[int, ...], ...]:
    """Ids of the tags whose embeddings stand among keys: `<tile_1>`, ... of NVLM-H; none of the others."""
    if config.variant != "H":
        return ()
    return tuple(tuple(tokenizer.encode_text(_tag(k))) for k in range(1, config.max_tiles + 1))


def _tag(number: int) -> str:
    return f"<tile_{number}>"


_ASSEMBLIES: dict[Variant, type[_Assembly]] = {"D": _Assembly, "X": _TextAssembly, "H": _HybridAssembly}


def _add_system(assembly: _Assembly, text: str) -> None:
    assembly.open_turn("system")
    assembly.add_text(text)
    assembly.close_turn()


def _add_parts(assembly: _Assembly, turn: Turn, tiles: Iterator[int]) -> None:
    after_image = False
    for part in turn.parts:
        if isinstance(part, ImagePlace):
            assembly.add_image(next(tiles))
            assembly.add_text("\n")
        else:
            assembly.add_text(part.removeprefix("\n") if after_image else part)
        after_image = isinstance(part, ImagePlace)


def _check_image_count(found: str, places: int, tiles_per_image: Sequence[int]) -> None:
    if places != len(tiles_per_image):
        raise UsageError(
            f"{found}, but the number of images passed is {len(tiles_per_image)}",
            hint=f"in a plain prompt write {IMAGE_MARKER} once per image, or nowhere: images then go first; "
            'in messages, write one {"type": "image"} part per image',
        )
