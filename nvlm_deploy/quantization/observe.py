"""What linears see: ranges of their inputs by token class, and a sample of the inputs themselves.

Shapes: R rows (token positions), K input features, C token classes, B magnitudes in BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nvlm_deploy.calibration.token_classes import UNSEEN, TokenClass
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.groups import LinearGroup

CLASSES = len(TokenClass)
# An input counts as an outlier when it is so many times the root mean square of its linear's inputs.
OUTLIER_FACTOR = 20.0
# Non-negative BF16 numbers, infinity and what is behind it included: the upper half of a float32's bits.
MAGNITUDES = 1 << 15
# Rows are counted in pieces, because 64-bit indices of all of them would be twice the inputs' size.
_ROWS_PER_COUNT = 256


@dataclass(slots=True)
class Observed:
    """Inputs of one group of linears, over everything that was shown.

    amax_CK: largest magnitude of each input feature, by token class. sums and counts are over all values of a
    class. rows: sampled inputs, one per token, in the order in which they were seen. histogram_CB: how many
    magnitudes there were, rounded up to BF16, by class; None if nobody asked for it.
    """

    amax_CK: Tensor
    square_sum_C: Tensor
    count_C: Tensor
    outliers_C: Tensor
    rows: list[Tensor] = field(default_factory=list)
    histogram_CB: Tensor | None = None

    @classmethod
    def empty(cls, features: int, device: torch.device, *, histogram: bool = False) -> Observed:
        """Nothing seen yet; `histogram`: count magnitudes, too, in 1 MiB."""
        square_sum_C, count_C, outliers_C = torch.zeros(3, CLASSES, dtype=torch.float64, device=device)
        seen = cls(torch.zeros(CLASSES, features, device=device), square_sum_C, count_C, outliers_C)
        if histogram:
            seen.histogram_CB = torch.zeros(CLASSES, MAGNITUDES, dtype=torch.int64, device=device)
        return seen

    def add(self, x_RK: Tensor, classes_R: Tensor, keep_R: Tensor) -> None:
        """Take in the inputs of R rows; `keep_R` are the indices of those that are kept as they are.

        Rows of the class UNSEEN count nowhere.
        """
        if len(keep_R):
            self.rows.append(x_RK[keep_R].float())
        seen_R = classes_R != UNSEEN
        if not seen_R.all():
            x_RK, classes_R = x_RK[seen_R], classes_R[seen_R]
        for kind in classes_R.unique().tolist():
            rows_S = (classes_R == kind).nonzero().squeeze(1)
            count = len(rows_S) * x_RK.shape[1]
            square_sum = x_RK.new_zeros((), dtype=torch.float64)
            for rows_P in rows_S.split(_ROWS_PER_COUNT):
                x_PK = x_RK[rows_P]
                square_sum += x_PK.square().sum(dtype=torch.float64)
                self.amax_CK[kind] = torch.maximum(self.amax_CK[kind], x_PK.abs_().amax(0))
            self.square_sum_C[kind] += square_sum
            self.count_C[kind] += count
            limit = OUTLIER_FACTOR * (square_sum / count).sqrt()
            for rows_P in rows_S.split(_ROWS_PER_COUNT):
                self.outliers_C[kind] += (x_RK[rows_P].abs_() > limit).sum()
        if self.histogram_CB is not None:
            for x_PK, classes_P in zip(
                x_RK.split(_ROWS_PER_COUNT), classes_R.split(_ROWS_PER_COUNT), strict=True
            ):
                places_PK = _rounded_up(x_PK) + MAGNITUDES * classes_P.long().unsqueeze(1)
                counts = torch.bincount(places_PK.flatten(), minlength=CLASSES * MAGNITUDES)
                self.histogram_CB += counts.view(CLASSES, MAGNITUDES)

    def limit(self, kinds: Collection[TokenClass]) -> float | None:
        """The largest magnitude of some classes, rounded up to BF16; None if none of them was seen."""
        seen = [kind for kind in kinds if self.count_C[kind]]
        if not seen:
            return None
        return float(_from_bits(_rounded_up(self.amax_CK[seen].max())))

    def beyond_C(self, limit: float) -> Tensor:
        """How many values of each class a static scale for magnitudes up to `limit` would clip, int64 [C].

        `limit` is rounded up to BF16; the count is exact.
        """
        assert self.histogram_CB is not None, "values are counted on demand"
        first = int(_rounded_up(torch.tensor(limit))) + 1
        return self.histogram_CB[:, first:].sum(1)

    @property
    def amax_K(self) -> Tensor:
        """Largest magnitude of each input feature, float32 [K]."""
        return self.amax_CK.amax(0)

    def rows_RK(self) -> Tensor:
        """The kept inputs, float32 [R, K].

        Raises:
            NvlmError: none was kept, because no class that was seen has a weight.
        """
        if not self.rows:
            raise NvlmError(
                "the class weights of the calibration set leave no input to search with",
                hint="give class_weights above 0 to the classes that the set has tokens of",
            )
        return torch.cat(self.rows)

    def by_class(self, limit: float | None = None) -> dict[str, dict[str, float]]:
        """Statistics of every class seen: amax, rms, shares of outliers and of channels beyond `limit`."""
        report = {}
        for kind in TokenClass:
            if not self.count_C[kind]:
                continue
            count = float(self.count_C[kind])
            report[kind.name.lower()] = {
                "amax": float(self.amax_CK[kind].max()),
                "rms": float((self.square_sum_C[kind] / count).sqrt()),
                "outliers": float(self.outliers_C[kind]) / count,
            }
            if limit is not None:
                clipped = (self.amax_CK[kind] > limit).float().mean()
                report[kind.name.lower()]["channels_clipped"] = float(clipped)
        return report


def _rounded_up(x: Tensor) -> Tensor:
    """The bits of the smallest BF16 numbers that are not below the magnitudes of `x`, int64."""
    return (x.abs().float().view(torch.int32).long() + 0xFFFF) >> 16


def _from_bits(bits: Tensor) -> Tensor:
    return (bits << 16).to(torch.int32).view(torch.float32)


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample as a group sees it: the class of every row, and the rows whose inputs are kept."""

    classes_R: Tensor
    keep_R: Tensor


class Observer:
    """Watches the inputs of groups of linears while samples pass through a model."""

    def __init__(self, model: nn.Module, groups: Sequence[LinearGroup], *, histograms: bool = False) -> None:
        """`histograms`: count magnitudes, too."""
        self._histograms = histograms
        self.seen: dict[str, Observed] = {}
        """What was seen, by the first linear of each group."""
        self._modules = {group.linears[0]: model.get_submodule(group.linears[0]) for group in groups}
        self._shown: Mapping[str, Shown] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe every forward pass inside the block; `show` says what passes."""
        handles = [
            module.register_forward_pre_hook(self._hook(name)) for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def show(self, sample: Mapping[str, Shown]) -> None:
        """Say what the next forward pass is about, by the first linear of each group."""
        self._shown = sample

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shown = self._shown[name]
            x_RK = inputs[0].detach().flatten(0, -2)
            if name not in self.seen:
                self.seen[name] = Observed.empty(x_RK.shape[1], x_RK.device, histogram=self._histograms)
            self.seen[name].add(x_RK, shown.classes_R, shown.keep_R)

        return observe


def choose_rows(
    classes: Sequence[npt.NDArray[np.int8]],
    weights: Mapping[TokenClass, float],
    most: int,
    seed: int,
) -> list[npt.NDArray[np.int64]]:
    """Choose at most `most` rows over all samples, without repetition.

    Args:
        classes: token class of every row, or UNSEEN, one array a sample.
        weights: how likely a row of a class is chosen, relative to one of weight 1; 0 never.

    Returns:
        Sorted indices of the chosen rows, one array a sample. The same seed chooses the same rows.
    """
    rng = np.random.default_rng(seed)
    # UNSEEN, -1, is the last entry, of weight 0.
    table = np.array([*(weights[kind] for kind in TokenClass), 0.0], np.float64)
    row_weights = np.concatenate([table[sample] for sample in classes])
    # Efraimidis and Spirakis (2006): the largest u^(1/w) are a weighted sample without replacement.
    with np.errstate(divide="ignore"):
        keys = np.log(rng.random(len(row_weights))) / row_weights
    keys[row_weights == 0] = -np.inf
    count = min(most, int((row_weights > 0).sum()))
    chosen = np.zeros(len(keys), bool)
    chosen[np.argsort(-keys, kind="stable")[:count]] = True
    ends = np.cumsum([len(sample) for sample in classes])[:-1]
    return [np.flatnonzero(part) for part in np.split(chosen, ends)]
