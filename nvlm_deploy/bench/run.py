"""The measurement: everyone does the same work in turn, round by round; medians are reported."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nvlm_deploy.bench.subjects import Subject
from nvlm_deploy.config.machine import tool_versions


@dataclass(frozen=True, slots=True)
class Workload:
    """What each round does. Token ids and tiles are random with `seed`; lengths count tokens."""

    prompt_tokens: int = 512
    decode_tokens: int = 32
    rounds: int = 3
    seed: int = 0


@dataclass(slots=True)
class Measurement:
    """One subject's figures: seconds of every round, and how far its numbers are from the reference's."""

    name: str
    weight_bytes: int
    load_seconds: float
    vision: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    logits_error: float = 0.0
    visual_error: float = 0.0
    same_top_token: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run; the first measurement is the reference."""

    shape: str
    workload: Workload
    environment: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per subject: medians over the rounds and the ratio to the reference."""
        prompt, decode = self.workload.prompt_tokens, self.workload.decode_tokens
        reference = self.measurements[0]
        return [
            {
                "subject": m.name,
                "weights_mb": m.weight_bytes / 1e6,
                "load_s": m.load_seconds,
                "vision_ms_per_tile": 1000 * statistics.median(m.vision),
                f"pp{prompt}_tok_s": prompt / statistics.median(m.prefill),
                f"tg{decode}_tok_s": decode / statistics.median(m.decode),
                "vision_x": speed_up(reference.vision, m.vision),
                "prefill_x": speed_up(reference.prefill, m.prefill),
                "decode_x": speed_up(reference.decode, m.decode),
                "visual_tokens_error": m.visual_error,
                "logits_error": m.logits_error,
                "same_top_token": m.same_top_token,
            }
            for m in self.measurements
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "shape": self.shape,
            "workload": asdict(self.workload),
            "environment": self.environment,
            "rows": self.rows(),
        }


def measure(
    shape: str,
    subjects: Sequence[Subject],
    tile_size: int,
    vocab_size: int,
    workload: Workload,
    threads: int,
    on_round: Callable[[int, int], None],
) -> Report:
    """Warm everyone up, which also compares their numbers, then measure `rounds` interleaved rounds."""
    rng = np.random.default_rng(workload.seed)
    input_ids = rng.integers(0, vocab_size, workload.prompt_tokens)
    tile = rng.integers(0, 256, (1, tile_size, tile_size, 3), dtype=np.uint8)
    measurements = [Measurement(s.name, s.weight_bytes, s.load_seconds) for s in subjects]
    logits = [subject.prefill(input_ids) for subject in subjects]
    visual = [subject.encode(tile) for subject in subjects]
    for measurement, own_logits, own_visual in zip(measurements, logits, visual, strict=True):
        measurement.logits_error = _relative_error(own_logits, logits[0])
        measurement.visual_error = _relative_error(own_visual, visual[0])
        measurement.same_top_token = bool(own_logits.argmax() == logits[0].argmax())
    for number in range(workload.rounds):
        for subject, measurement in zip(subjects, measurements, strict=True):
            with timed(measurement.vision):
                subject.encode(tile)
            with timed(measurement.prefill):
                subject.prefill(input_ids)
            with timed(measurement.decode):
                for token in range(workload.decode_tokens):
                    subject.decode(token)
        on_round(number + 1, workload.rounds)
    return Report(shape, workload, environment(threads), tuple(measurements))


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the block's duration to `seconds`."""
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def speed_up(reference: Sequence[float], own: Sequence[float]) -> float:
    """Median of the ratios round by round, which cancels the machine's drift."""
    return statistics.median(r / o for r, o in zip(reference, own, strict=True))


def _relative_error(own: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(own - reference) / np.linalg.norm(reference))


def environment(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    tools = ("onnxruntime", "torch", "transformers", "numpy")
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        **tool_versions(tools),
    }
