"""The endless stream of sequences that one process works on, and the few numbers that it goes on from.

Samples are read by worker processes, in the blend's order; packing happens here, in the order in which they
were drawn. So the stream is the same for any number of workers, and after any interruption.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from nvlm_deploy.calibration.sources import ConversationSource
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.train.data.order import BlendOrder, Draw
from nvlm_deploy.train.data.packing import Size, choose_samples
from nvlm_deploy.train.data.sample import SkippedSample, TrainSample, build_train_sample

OnSkip = Callable[[Draw, SkippedSample], None]


@dataclass(frozen=True, slots=True)
class SampleDataset(Dataset["TrainSample | SkippedSample"]):
    """Draws to samples; what cannot be trained on comes out as a SkippedSample."""

    sources: Sequence[ConversationSource]
    names: Sequence[str]
    builder: PromptBuilder
    data: DataSection

    def __getitem__(self, draw: Draw) -> TrainSample | SkippedSample:
        label = f"{self.names[draw.source]}[{draw.index}]"
        try:
            conversation = self.sources[draw.source][draw.index]
            label = conversation.label
            return build_train_sample(conversation, self.builder, self.data, draw.source)
        except NvlmError as error:
            return SkippedSample(label, draw.source, error.message)


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples of the order are this process's: those of number `rank` in each round of `world`."""

    rank: int = 0
    world: int = 1


class SequenceStream:
    """Yields the samples of one sequence after the other."""

    def __init__(
        self,
        dataset: SampleDataset,
        order: BlendOrder,
        share: Share | None = None,
        workers: int = 0,
        on_skip: OnSkip | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Begin with `order`, or where `state` of an earlier stream says."""
        self._dataset, self._order, self._share = dataset, order, share or Share()
        self._workers, self._on_skip = workers, on_skip
        self._after: deque[dict[str, Any]] = deque()
        self._waiting: list[tuple[Draw, TrainSample]] = []
        self._at = order.state()
        self.skipped = 0
        if state is not None:
            self._at, self.skipped = state["order"], state["skipped"]
            order.number, order.taken = self._at["number"], list(self._at["taken"])
            # Those were good samples when they were drawn; one that is not any more is counted anew.
            for draw in (Draw(**each) for each in state["waiting"]):
                self._take(draw, dataset[draw])
        self._samples = self._read()

    def state(self) -> dict[str, Any]:
        """Plain values; a stream that begins with them yields what this one would yield next."""
        waiting = [asdict(draw) for draw, _ in self._waiting]
        return {"order": self._at, "waiting": waiting, "skipped": self.skipped}

    def __iter__(self) -> Iterator[list[TrainSample]]:
        data = self._dataset.data
        wanted = data.packing_buffer if data.packing else 1
        while True:
            while len(self._waiting) < wanted:
                next(self._samples)
            places = [0]
            if data.packing:
                sizes = [Size(len(sample), len(sample.tiles)) for _, sample in self._waiting]
                places = choose_samples(sizes, data.max_length, data.max_tiles_per_sequence)
            chosen = [self._waiting[place][1] for place in places]
            self._waiting = [each for place, each in enumerate(self._waiting) if place not in set(places)]
            yield chosen

    def _read(self) -> Iterator[None]:
        """Take one drawn sample after the other."""
        draws: deque[Draw] = deque()
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._draws(draws),
            num_workers=self._workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_group,
            prefetch_factor=4 if self._workers else None,
        )
        for sample in loader:
            self._at = self._after.popleft()
            self._take(draws.popleft(), sample)
            yield

    def _draws(self, draws: deque[Draw]) -> Iterator[Draw]:
        """This process's draws; workers run ahead of what `_read` has taken, so they are noted."""
        order = iter(self._order)
        while True:
            mine = [next(order) for _ in range(self._share.world)][self._share.rank]
            self._after.append(self._order.state())
            draws.append(mine)
            yield mine

    def _take(self, draw: Draw, sample: TrainSample | SkippedSample) -> None:
        if isinstance(sample, TrainSample):
            self._waiting.append((draw, sample))
            return
        self.skipped += 1
        if self._on_skip is not None:
            self._on_skip(draw, sample)
        if self.skipped > self._dataset.data.max_skipped:
            raise NvlmError(
                f"{self.skipped:,} samples were skipped, the last is {sample.label}: {sample.reason}",
                hint="skipped.jsonl lists them all; mend the data, or raise data.max_skipped",
            )


def resume_state(states: Sequence[dict[str, Any]], share: Share) -> dict[str, Any]:
    """Choose this process's state among those of all processes of an earlier run.

    With another number of processes than before, all go on from where the slowest was, so that no sample is
    lost and a few may come twice; samples that waited to be packed are dealt out.
    """
    if len(states) == share.world:
        return states[share.rank]
    slowest = min((state["order"] for state in states), key=lambda order: order["number"])
    waiting = [draw for state in states for draw in state["waiting"] if draw["number"] < slowest["number"]]
    skipped = sum(state["skipped"] for state in states)
    return {
        "order": slowest,
        "waiting": waiting[share.rank :: share.world],
        "skipped": skipped if share.rank == 0 else 0,
    }


def _unchanged(sample: Any) -> Any:
    return sample


def _leave_group(worker: int) -> None:
    # A signal to the whole group is the trainer's to answer, which needs its workers until it has saved.
    os.setpgrp()
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    """End with a trainer that was killed: a worker whose pipe is full would wait for it forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
