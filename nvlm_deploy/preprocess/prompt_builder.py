"""The prompt contract: a question or a chat, and the tiles of its images, become token ids.

The template is the released `chat`: every turn is `<|im_start|>role\\ntext<|im_end|>`, and an image is
`<Image>`, for each tile its tag and its placeholders, `</Image>`. Image positions are known because
they are counted while the prompt is built; ids are never searched for placeholders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean
from nvlm_deploy.preprocess.assembly import ASSEMBLIES, Assembly
from nvlm_deploy.preprocess.messages import ImagePlace, Message, Turn, parse_messages
from nvlm_deploy.preprocess.prompt import Prompt, TokenizationMode
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.preprocess.written_images import IMAGE_MARKER, mark_written_images

DEFAULT_SYSTEM_MESSAGE = "Answer the questions."


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
                which is text. In NVLM-X and NVLM-H an image may be written out, `<Image>` and its
                tags, and tags must then be those of its tiles. In messages all text is text; an image
                part stands for an image and a newline, and a newline that follows it is not doubled.
            tiles_per_image: number of tiles of each image, thumbnail included, in order.

        Raises:
            UsageError: the prompt has another number of images than `tiles_per_image`, or other tags
                than their tiles, or the messages are malformed.
        """
        if any(tiles < 1 for tiles in tiles_per_image):
            raise UsageError(f"every image has at least one tile, not {list(tiles_per_image)}")
        assembly = ASSEMBLIES[self.config.variant](self.tokenizer, self.config, self.mode)
        if isinstance(prompt, str):
            self._add_plain(assembly, prompt, tiles_per_image)
        else:
            self._add_turns(assembly, parse_messages(prompt), tiles_per_image)
        assembly.open_turn("assistant")
        return assembly.finish()

    def _add_plain(self, assembly: Assembly, prompt: str, tiles_per_image: Sequence[int]) -> None:
        if self.config.variant != "D":
            # The released code leaves written tags of NVLM-D as text; here masks would follow them.
            prompt = mark_written_images(prompt, [assembly.written_tags(n) for n in tiles_per_image])
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

    def _add_turns(self, assembly: Assembly, turns: Sequence[Turn], tiles_per_image: Sequence[int]) -> None:
        places = sum(isinstance(part, ImagePlace) for turn in turns for part in turn.parts)
        _check_image_count(f"the messages have {places} image parts", places, tiles_per_image)
        if turns[0].role != "system":
            _add_system(assembly, DEFAULT_SYSTEM_MESSAGE)
        tiles = iter(tiles_per_image)
        for turn in turns:
            assembly.open_turn(turn.role)
            _add_parts(assembly, turn, tiles)
            assembly.close_turn()


def _add_system(assembly: Assembly, text: str) -> None:
    assembly.open_turn("system")
    assembly.add_text(text)
    assembly.close_turn()


def _add_parts(assembly: Assembly, turn: Turn, tiles: Iterator[int]) -> None:
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
