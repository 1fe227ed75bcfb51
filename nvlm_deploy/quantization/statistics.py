"""What the linears of a model see of a calibration set, by token class, and what a scale would clip.

An engine with static INT8 or FP8 activations clips what is beyond the largest magnitude that its calibration
saw. So the values beyond the largest magnitude of some classes are those that a calibration would clip which
shows these classes alone. Magnitudes are rounded up to BF16 for it, as ModelOpt keeps them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.calibration import CalibrationSamples, CalibrationSummary, TokenClass
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.models.device import open_device
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.observe import Observed
from nvlm_deploy.quantization.steps import DecoderLayerStep
from nvlm_deploy.quantization.stream import CalibrationStream, StreamSettings
from nvlm_deploy.quantization.streamed_model import StreamedModel

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """Counts over the values of one token class.

    outliers: values beyond 20 times the root mean square. clipped_by_text: values that a scale from text
    tokens alone would clip, None where there is no text. clipped_unseen: values that a scale from all the
    other classes would clip, None where there are none. clipped_against: values that a scale from another
    set would clip, None where that set showed nothing, or if there is none.
    """

    values: int
    amax: float
    square_sum: float
    outliers: int
    clipped_by_text: int | None
    clipped_unseen: int | None
    clipped_against: int | None = None

    @property
    def rms(self) -> float:
        """Root mean square."""
        return float((self.square_sum / self.values) ** 0.5)

    def share(self, count: int | None) -> float | None:
        """A count as a share of all values."""
        return None if count is None else count / self.values

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON; counts as shares."""
        return {
            "values": self.values,
            "amax": self.amax,
            "rms": self.rms,
            "outliers": self.share(self.outliers),
            "clipped_by_text": self.share(self.clipped_by_text),
            "clipped_unseen": self.share(self.clipped_unseen),
            "clipped_against": self.share(self.clipped_against),
        }


Classes = Mapping[str, ClassStatistics]


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """The common input of some linears, by token class; classes that never reach it are not there.

    against_amax: largest magnitude that another set showed.
    """

    linears: tuple[str, ...]
    classes: Classes
    against_amax: float | None = None

    @property
    def part(self) -> str:
        """The part of the model: vision, projector, language or lm_head."""
        first = self.linears[0]
        return "lm_head" if first == "language.lm_head" else first.partition(".")[0]

    @property
    def everything(self) -> ClassStatistics:
        """All classes together."""
        return total(self.classes.values())

    @property
    def clipped_by_text(self) -> float | None:
        """Share of the values that are no text's which a scale from text tokens alone would clip."""
        others = [each for name, each in self.classes.items() if name != "text"]
        if not others or "text" not in self.classes:
            return None
        sums = total(others)
        return sums.share(sums.clipped_by_text)

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            "linears": list(self.linears),
            "clipped_by_text": self.clipped_by_text,
            "against_amax": self.against_amax,
            "classes": {name: each.to_dict() for name, each in self.classes.items()},
        }


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One step of the model. kv_amax: of keys and of values in a decoder layer's cache."""

    step: str
    inputs: tuple[InputStatistics, ...]
    kv_amax: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        layer: dict[str, Any] = {"step": self.step, "inputs": [each.to_dict() for each in self.inputs]}
        if self.kv_amax is not None:
            layer["keys_amax"], layer["values_amax"] = self.kv_amax
        return layer


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """All layers that have linears, in the order of computation."""

    layers: tuple[LayerStatistics, ...]

    @property
    def inputs(self) -> tuple[InputStatistics, ...]:
        """The inputs of all layers."""
        return tuple(each for layer in self.layers for each in layer.inputs)

    @property
    def ranges(self) -> dict[str, float]:
        """Largest magnitudes by the first linear of each input."""
        return {each.linears[0]: each.everything.amax for each in self.inputs}

    @property
    def parts(self) -> dict[str, dict[str, ClassStatistics]]:
        """Sums over every part of the model, by token class."""
        parts: dict[str, dict[str, ClassStatistics]] = {}
        for each in self.inputs:
            sums = parts.setdefault(each.part, {})
            for name, statistics in each.classes.items():
                sums[name] = total([sums[name], statistics]) if name in sums else statistics
        return parts

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            "parts": {
                part: {name: each.to_dict() for name, each in classes.items()}
                for part, classes in self.parts.items()
            },
            "layers": [layer.to_dict() for layer in self.layers],
        }


def total(statistics: Iterable[ClassStatistics]) -> ClassStatistics:
    """Sums of counts; what is None anywhere counts nothing there, and is None if it is None everywhere."""
    parts = tuple(statistics)

    def known(counts: Iterable[int | None]) -> int | None:
        numbers = [count for count in counts if count is not None]
        return sum(numbers) if numbers else None

    return ClassStatistics(
        values=sum(each.values for each in parts),
        amax=max(each.amax for each in parts),
        square_sum=sum(each.square_sum for each in parts),
        outliers=sum(each.outliers for each in parts),
        clipped_by_text=known(each.clipped_by_text for each in parts),
        clipped_unseen=known(each.clipped_unseen for each in parts),
        clipped_against=known(each.clipped_against for each in parts),
    )


def activation_statistics(
    weights: ModelWeights,
    samples: CalibrationSamples,
    *,
    against: Mapping[str, float] | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
    progress: ProgressCallback = no_progress,
) -> ActivationStatistics:
    """Show a calibration set to a model, step by step, and count what its linears see.

    Args:
        weights: of an unquantized checkpoint. One step of them is in memory at a time, in FP32.
        against: ranges of another set, from `ActivationStatistics.ranges`; what they clip is counted.
        device: cpu, cuda or cuda:N.
        scratch: where hidden states are kept meanwhile, see `spool_bytes`; the system's folder unless given.

    Raises:
        UnsuitableError: there is no such device, or too little room for the hidden states.
        NvlmError: a sample has changed since the set was loaded.
    """
    folder = scratch or Path(tempfile.gettempdir())
    _check_room(folder, spool_bytes(weights.reader.config, samples.summary))
    model = StreamedModel(weights, open_device(device))
    settings = StreamSettings(rows=0, histograms=True)
    ranges = against or {}
    layers = []
    with tempfile.TemporaryDirectory(prefix="nvlm-statistics-", dir=folder) as spool:
        stream = CalibrationStream(model, samples, Path(spool), settings, progress)
        for index, step in enumerate(stream.steps):
            seen = stream.observe(index)
            stream.finish(index)
            groups = [(group, group.linears[0]) for group in step.groups if group.linears[0] in seen]
            inputs = tuple(_input(group, seen[first], ranges.get(first)) for group, first in groups)
            cache = step.kv_range if isinstance(step, DecoderLayerStep) else None
            if inputs:
                kv_amax = (cache.keys_amax, cache.values_amax) if cache else None
                layers.append(LayerStatistics(step.name, inputs, kv_amax))
    return ActivationStatistics(tuple(layers))


def spool_bytes(config: NvlmConfig, summary: CalibrationSummary) -> int:
    """Bytes on disk that the hidden states of a set take at most, those before and after one step.

    Tiles of cross-attention stay beside both, with the tags that are bound to them.
    """
    tower = summary.tiles * config.vision.num_positions * config.vision.hidden_size
    decoder = sum(summary.tokens.values()) * config.language.hidden_size
    return _FLOAT_BYTES * max(2 * tower, (2 if config.cross_attention is None else 3) * decoder)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnsuitableError(
            f"the disk that holds {folder} has {free / 1e9:.2f} GB free, and the hidden states of the "
            f"calibration set take {needed / 1e9:.2f} GB",
            hint="name a folder on another disk with --scratch, or show less: --set count=32",
        )


def _input(group: LinearGroup, seen: Observed, against: float | None) -> InputStatistics:
    shown = [kind for kind in TokenClass if seen.count_C[kind]]
    by_text = seen.limit([TokenClass.TEXT])
    classes = {}
    for kind in shown:
        unseen = seen.limit([other for other in shown if other is not kind])
        classes[kind.name.lower()] = ClassStatistics(
            values=int(seen.count_C[kind]),
            amax=float(seen.amax_CK[kind].max()),
            square_sum=float(seen.square_sum_C[kind]),
            outliers=int(seen.outliers_C[kind]),
            clipped_by_text=None if by_text is None else int(seen.beyond_C(by_text)[kind]),
            clipped_unseen=None if unseen is None else int(seen.beyond_C(unseen)[kind]),
            clipped_against=None if against is None else int(seen.beyond_C(against)[kind]),
        )
    return InputStatistics(group.linears, classes, against)
