"""The tokenizer of a checkpoint or a bundle: text to ids, ids to text.

One rule keeps prompts safe: special tokens are found by this module and never by the backend, which
reads all that it gets as plain text. Special tokens split the text in either case, so encoding the
pieces between them gives the ids of encoding the whole string at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from nvlm_deploy.errors import NvlmError, UsageError

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE_TOKEN = "<|vision_pad|>"

_FILE = "tokenizer.json"
_RELEASED_HINT = "use the tokenizer files of nvidia/NVLM-D-72B, which has the extra tokens of Qwen2.5"


class Tokenizer:
    """Byte-level BPE with the special tokens of the chat template. Safe to share between threads."""

    def __init__(self, serialized: str, source: str = _FILE) -> None:
        """Read the text of a `tokenizer.json`; `source` is named in errors.

        Raises:
            NvlmError: the text is no tokenizer, or lacks a token of the chat template.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(serialized)
        except Exception as error:  # the backend raises nothing narrower
            raise NvlmError(f"{source} is not a valid tokenizer: {error}", hint=_RELEASED_HINT) from None
        backend.no_truncation()
        backend.no_padding()
        self._special_ids = _special_ids(backend, source)
        _check_pieces(backend, self._special_ids, source)
        backend.encode_special_tokens = True
        self._backend = backend
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)))
        self.turn_start_id = self._special_ids[TURN_START]
        self.turn_end_id = self._special_ids[TURN_END]
        self.image_token_id = self._special_ids[IMAGE_TOKEN]

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json`, or convert `vocab.json` and `merges.txt`, which needs transformers.

        Raises:
            NvlmError: neither is there, or they cannot be read.
        """
        path = directory / _FILE
        if path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise NvlmError(f"{path} cannot be read: {error}", hint=_RELEASED_HINT) from None
        if all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
            return cls(_convert(directory), str(directory / "vocab.json"))
        raise NvlmError(
            f"{directory} has no tokenizer: neither {_FILE} nor vocab.json with merges.txt",
            hint=_RELEASED_HINT,
        )

    @property
    def size(self) -> int:
        """Number of tokens, special ones included. The embedding may have more rows."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def eos_id(self) -> int:
        """The id that ends an answer: `<|im_end|>`."""
        return self.turn_end_id

    def special_id(self, token: str) -> int:
        """The id of a special token by its text; KeyError if there is none."""
        return self._special_ids[token]

    def encode(self, text: str) -> list[int]:
        """Encode as the released code does: special tokens in the text become their ids."""
        ids: list[int] = []
        for piece, special in self.split_special(text):
            ids.extend([self._special_ids[piece]] if special else self.encode_text(piece))
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Encode text as text: `<|im_end|>` and the like become the tokens of their characters.

        Added tokens that the tokenizer does not mark as special (`<tool_call>`) are ordinary vocabulary.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise UsageError(
                f"the text is not valid Unicode: {text[:40]!r}",
                hint="check the encoding that it was read with",
            ) from None
        return ids

    def split_special(self, text: str) -> Iterator[tuple[str, bool]]:
        """Split at special tokens: (piece, is special) in order; the pieces join to `text`."""
        end = 0
        for match in self._special_pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], False
            yield match.group(), True
            end = match.end()
        if end < len(text):
            yield text[end:], False

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text; bytes that are no valid UTF-8 become U+FFFD."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Start to decode one answer token by token."""
        return StreamDecoder(self, skip_special_tokens=skip_special_tokens)

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.json` into `directory`; return its path."""
        path = directory / _FILE
        path.write_text(self._backend.to_str(), encoding="utf-8")
        return path


def add_special_tokens(directory: Path, vocab_size: int) -> None:
    """Give the `tokenizer.json` of a plain language model the chat template's tokens that it lacks.

    Raises:
        NvlmError: the embedding has no row left for them.
    """
    path = directory / _FILE
    if not path.is_file():
        return
    backend = tokenizers.Tokenizer.from_file(str(path))
    missing = [t for t in (TURN_START, TURN_END, IMAGE_TOKEN) if backend.token_to_id(t) is None]
    if not missing:
        return
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in missing])
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > vocab_size:
        raise NvlmError(
            f"{path} lacks {', '.join(missing)}, and the embedding has no room for {size:,} tokens",
            hint="use a language model whose vocab_size leaves room, as Qwen2's do",
        )
    backend.save(str(path))


class StreamDecoder:
    """Decodes one answer incrementally: the pieces join to `Tokenizer.decode` of all ids.

    A character whose bytes spread over several tokens comes out whole, with its last token.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        # The context is the tokens emitted last: a decoder may treat the start of a text in its own way.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add one token; return the text that is complete by now, often "" or a word."""
        self._pending.append(int(token_id))
        text = self._pending_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Return what is left: nothing, or U+FFFD for a character that the answer never finished."""
        text = self._pending_text()
        self._context, self._pending = [], []
        return text

    def _pending_text(self) -> str:
        def decode(ids: list[int]) -> str:
            return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

        return decode(self._context + self._pending)[len(decode(self._context)) :]


def _special_ids(backend: tokenizers.Tokenizer, source: str) -> dict[str, int]:
    """Special tokens by their text; NvlmError if the chat template's are not among them."""
    added = backend.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    for token in (TURN_START, TURN_END, IMAGE_TOKEN):
        if token not in special:
            raise NvlmError(f"{source} has no special token {token}", hint=_RELEASED_HINT)
    return special


def _check_pieces(backend: tokenizers.Tokenizer, special_ids: dict[str, int], source: str) -> None:
    """Hold the rule at the top of this file against the backend: special tokens split the text, no more.

    A token that swallows the space beside it, or a vocabulary that marks the start of a text, breaks it.
    """

    def encode(text: str, *, special_as_text: bool) -> list[int]:
        backend.encode_special_tokens = special_as_text
        return list(backend.encode(text, add_special_tokens=False).ids)

    for token, token_id in special_ids.items():
        for side in (" ", "a"):
            piece = encode(side, special_as_text=True)
            if encode(side + token + side, special_as_text=False) != [*piece, token_id, *piece]:
                raise NvlmError(
                    f"{source}: the special token {token} changes the text around it; not supported",
                    hint=_RELEASED_HINT,
                )


def _convert(directory: Path) -> str:
    """Make the text of a `tokenizer.json` from `vocab.json`, `merges.txt` and `tokenizer_config.json`."""
    try:
        # The name in transformers 4 and, as an alias that its types do not list, in 5.
        from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]
    except ImportError:
        raise NvlmError(
            f"{directory} has no {_FILE}, and converting vocab.json and merges.txt needs transformers",
            hint="pip install transformers, or add a tokenizer.json",
        ) from None
    # The Auto class would ask to run the checkpoint's own code; the vocabulary needs none.
    try:
        converted = Qwen2TokenizerFast.from_pretrained(str(directory), local_files_only=True)
        text: str = converted.backend_tokenizer.to_str()
    except Exception as error:  # whatever the files provoke in the converter
        raise NvlmError(f"{directory}: vocab.json and merges.txt cannot be read: {error}") from None
    return text
