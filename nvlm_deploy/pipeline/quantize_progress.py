"""How far a quantization is: one number over all steps, which grows as evenly as can be told beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.quantization.groups import LinearGroup
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.stream import CalibrationStream

STAGE = "quantize"
_UNITS = 10_000
# Work per weight in tokens that are multiplied with it: what reading, packing and writing a weight takes, and
# how often AWQ and GPTQ multiply with every sampled row or weigh every column against others.
_PACKING = 300
_AWQ_PASSES = 12
_GPTQ = 4000


class QuantizeProgress:
    """Adds up what is done and tells it in proportion to the whole."""

    def __init__(
        self,
        stream: CalibrationStream,
        weights: ModelWeights,
        storages: Mapping[str, Storage],
        last_shown: int,
        report: ProgressCallback,
    ) -> None:
        """`last_shown` is the last step that samples are shown to."""
        self._weights, self._storages, self._report = weights, storages, report
        self._known = set(weights.names())
        self._rows, self._samples = stream.settings.rows, max(1, len(stream.samples))
        self._shown: list[int] = []
        self._searched: list[int] = []
        for index, step in enumerate(stream.steps):
            shown = sum(self._size(group) * stream.count_rows(index, group) for group in step.groups)
            self._shown.append(shown if index <= last_shown else 0)
            self._searched.append(sum(self.search_cost(group) for group in step.groups))
        self._total = max(1, sum(self._shown) + sum(self._searched))
        self._before, self._in_search = 0, 0

    def begin(self, step: int) -> None:
        """All steps before this one are done."""
        self._before = sum(self._shown[:step]) + sum(self._searched[:step])
        self._in_search = 0
        self._tell(0)

    def showed(self, stage: str, done: int, total: int) -> None:
        """Take what the stream tells: samples that were shown, counted over all steps."""
        step, number = divmod(done - 1, self._samples)
        self._tell(self._shown[step] * (number + 1) // self._samples)

    def searched(self, step: int, part: LinearGroup) -> None:
        """The linears of one part are done."""
        self._in_search += self.search_cost(part)
        self._tell(self._shown[step] + self._in_search)

    def search_cost(self, group: LinearGroup) -> int:
        """What searching and packing the quantized linears of a group takes."""
        cost = 0
        for name in group.weights:
            storage = self._storages[name]
            if storage.quantized:
                per_weight = {"awq": _AWQ_PASSES * self._rows, "gptq": _GPTQ}.get(str(storage.algorithm), 0)
                cost += (_PACKING + per_weight) * math.prod(self._weights.shape(name))
        return cost

    def _size(self, group: LinearGroup) -> int:
        # A tied lm_head is no parameter of its own.
        names = [name for name in group.weights if name in self._known]
        return sum(math.prod(self._weights.shape(name)) for name in names)

    def _tell(self, within: int) -> None:
        self._report(STAGE, min(_UNITS, (self._before + within) * _UNITS // self._total), _UNITS)
