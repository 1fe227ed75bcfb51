"""Draw the samples of a calibration set, check and count them once, and read them again when asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.calibration.sample import CalibrationSample, build_sample
from nvlm_deploy.calibration.sources import ConversationSource, open_source
from nvlm_deploy.calibration.summary import CalibrationSummary, Tally
from nvlm_deploy.config.calibration import CalibrationSet
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.progress import ProgressCallback, no_progress

# A conversation that is too long is replaced by the next of the draw; so many are tried per sample.
_TRIES = 4


@dataclass(frozen=True, slots=True)
class _Chosen:
    index: int
    digest: bytes


class CalibrationSamples:
    """The samples of one set, in a fixed order; every pass reads them anew and has one in memory at a time.

    Tiles are large: 512 images of seven 448 px tiles take 2.2 GB.
    """

    def __init__(
        self,
        source: ConversationSource,
        builder: PromptBuilder,
        chosen: Sequence[_Chosen],
        summary: CalibrationSummary,
    ) -> None:
        """Use `load_samples`."""
        self._source, self._builder, self._chosen = source, builder, tuple(chosen)
        self.summary = summary

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: int) -> CalibrationSample:
        """Read one sample.

        Raises:
            NvlmError: it is not what it was when the set was loaded, or can no longer be read.
        """
        chosen = self._chosen[position]
        whole = build_sample(self._source[chosen.index], self._builder)
        sample = whole.shorten(self.summary.max_tokens)
        if sample is None or sample.digest() != chosen.digest:
            raise NvlmError(
                f"{whole.label} has changed since the calibration set was loaded",
                hint="leave the files of the set alone while it is used, and start again",
            )
        return sample

    def __iter__(self) -> Iterator[CalibrationSample]:
        return (self[position] for position in range(len(self)))


def load_samples(
    spec: CalibrationSet,
    config: NvlmConfig,
    tokenizer: Tokenizer,
    base_dir: Path,
    progress: ProgressCallback = no_progress,
) -> CalibrationSamples:
    """Draw the samples of `spec` and read each of them once, so that bad input is found before any work.

    A source of up to `spec.count` conversations is used in its order; of a larger one, that many are drawn
    by `spec.seed`. Samples have at most `spec.max_tokens` tokens, and at most what the model can take: a
    longer answer is cut, and a conversation whose prompt is longer is left out and replaced by another.

    Args:
        spec: the set, from `read_calibration_set`.
        config: the model's; its tile rule is used.
        tokenizer: the model's.
        base_dir: where relative paths in `spec` start.
        progress: told the samples that are read.

    Raises:
        NvlmError: the source or one of its drawn conversations is not in order, or all are too long.
        UnsuitableError: a package that the source needs is not installed.
    """
    builder = PromptBuilder(tokenizer, config)
    try:
        source = open_source(spec.source, config.tile_size, base_dir)
    except NvlmError as error:
        raise type(error)(f"calibration set '{spec.name}': {error.message}", hint=error.hint) from None
    limit = min(spec.max_tokens, config.language.max_position_embeddings)
    tally, chosen, too_long = Tally(), [], []
    for index in _draw(len(source), spec):
        whole = build_sample(source[index], builder)
        sample = whole.shorten(limit)
        if sample is None:
            too_long.append(whole.prompt_length)
            continue
        chosen.append(_Chosen(index, tally.add(sample)))
        progress("calibration set", len(chosen), spec.count)
        if len(chosen) == spec.count:
            break
    if not chosen:
        raise _all_too_long(spec, too_long, limit)
    return CalibrationSamples(source, builder, chosen, tally.summarize(spec, len(too_long), limit))


def _draw(available: int, spec: CalibrationSet) -> Sequence[int]:
    if available <= spec.count:
        return range(available)
    return random.Random(spec.seed).sample(range(available), min(available, _TRIES * spec.count))


def _all_too_long(spec: CalibrationSet, lengths: Sequence[int], limit: int) -> NvlmError:
    shortest = min(lengths)
    message = (
        f"calibration set '{spec.name}' is empty: the shortest of {len(lengths):,} prompts has {shortest:,} "
        f"tokens, and the limit is {limit:,}"
    )
    if limit < spec.max_tokens:
        return NvlmError(message, hint=f"the model takes no more than {limit:,} tokens; use shorter prompts")
    return NvlmError(message, hint=f"raise max_tokens, for example --set max_tokens={shortest + 256}")
