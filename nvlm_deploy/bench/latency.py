"""The latency of one engine, stage by stage: questions about images of several sizes, prompts, answers.

Tests take turns, round by round, so that a machine that slows down slows all of them; a first round does not
count. Images are never taken from a cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvlm_deploy.backends.protocol import DecoderSession, InflightSession, SessionOptions
from nvlm_deploy.bench.floors import Floors
from nvlm_deploy.bench.limits import measure_limits
from nvlm_deploy.bench.pictures import jpeg_with_tiles
from nvlm_deploy.bench.run import environment
from nvlm_deploy.bench.samples import Row, SampleReport
from nvlm_deploy.config.verified import require_passed
from nvlm_deploy.errors import UsageError, VerificationError
from nvlm_deploy.preprocess.images import load_image
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.runtime.bundle import Bundle, open_engine, open_tiles
from nvlm_deploy.runtime.engine import Engine
from nvlm_deploy.runtime.image_cache import ImageCache
from nvlm_deploy.runtime.result import Result

QUESTION = "What is the total amount on this receipt, and on which day was it paid?"
# Of `Result.timings_ms`, under the names that servers' benchmarks use.
_STAGES = {
    "tile": "tile",
    "tokenize": "tokenize",
    "vision": "vision",
    "prefill": "prefill",
    "first_token": "ttft",
    "per_token": "tpot",
    "total": "e2el",
}
_CPU_BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True)
class LatencyWorkload:
    """tiles: of images, thumbnails included; prompts: their lengths without images; depths: prompts before
    an answer of `answer` tokens. All lengths count tokens."""

    tiles: tuple[int, ...] = (1, 3, 5, 7)
    prompts: tuple[int, ...] = (512,)
    depths: tuple[int, ...] = (512,)
    answer: int = 32
    rounds: int = 5
    seed: int = 0


@dataclass(slots=True)
class _Test:
    """One test: what a round of it does, which says milliseconds by stage, and what its rows carry."""

    name: str
    round: Callable[[], dict[str, float]]
    tokens: dict[str, int] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        for stage, samples in self.samples.items():
            tokens, floor = self.tokens.get(stage, 0), self.floors.get(stage)
            yield Row(self.name, stage, tuple(samples), tokens, floor)


def bench_latency(
    directory: Path, workload: LatencyWorkload, options: SessionOptions, progress: ProgressCallback
) -> SampleReport:
    """Open the bundle in `directory` and measure it.

    On a CPU the machine's limits are measured first, and rows say how near to them they are.

    Raises:
        NvlmError: no bundle, or a changed file.
        UsageError: tests that are longer than the engine's context, or tiles that no image has.
    """
    bundle = Bundle.open(directory)
    _check_lengths(bundle, workload)
    threads = options.threads or os.cpu_count() or 1
    began = time.perf_counter()
    vision, decoder = open_engine(bundle, options)
    engine = Engine(bundle, vision, decoder, ImageCache(0), open_tiles(bundle, options))
    load_s = time.perf_counter() - began
    limits = floors = None
    if bundle.manifest.backend == _CPU_BACKEND and options.device == "cpu":
        limits = measure_limits(threads)
        floors = Floors.of(bundle.config, bundle.manifest, limits)
    tests = [_image_test(engine, tiles, workload, floors) for tiles in workload.tiles]
    if not isinstance(decoder, InflightSession):
        tests += [_prompt_test(decoder, length, workload, floors) for length in workload.prompts]
        tests += [_answer_test(decoder, depth, workload, floors) for depth in workload.depths]
    _measure(tests, workload.rounds, progress)
    rows = tuple(row for test in tests for row in test.rows())
    report_limits = None if limits is None else limits.to_dict()
    return SampleReport(_described(bundle, load_s), environment(threads), report_limits, rows)


def _check_lengths(bundle: Bundle, workload: LatencyWorkload) -> None:
    longest = max((*workload.prompts, *(depth + workload.answer for depth in workload.depths)), default=0)
    if longest > bundle.manifest.context:
        raise UsageError(
            f"a test has {longest:,} tokens, and the engine's context is {bundle.manifest.context:,}",
            hint="shorten --prompt-tokens, --depth or --answer-tokens",
        )


def _measure(tests: list[_Test], rounds: int, progress: ProgressCallback) -> None:
    for number in range(rounds + 1):
        for test in tests:
            for stage, milliseconds in test.round().items():
                if number:
                    test.samples.setdefault(stage, []).append(milliseconds)
        progress("measure", number, rounds)


def _image_test(engine: Engine, tiles: int, workload: LatencyWorkload, floors: Floors | None) -> _Test:
    file = jpeg_with_tiles(engine.bundle.config, tiles, workload.seed)
    prompt, _ = engine.preprocess(QUESTION, [file])

    def ask() -> dict[str, float]:
        began = time.perf_counter()
        load_image(file)
        decode_file = 1000 * (time.perf_counter() - began)
        result = engine.generate(QUESTION, [file], max_new_tokens=workload.answer)
        assert isinstance(result, Result), "no stream was asked for"
        stages = {name: result.timings_ms[key] for key, name in _STAGES.items()}
        # The engine reads the file and cuts it in one stage.
        stages["tile"] = max(0.0, stages["tile"] - decode_file)
        return {"decode_file": decode_file, **stages}

    test = _Test(f"t{tiles}", ask, {"prefill": len(prompt)})
    if floors is not None:
        vision, prefill = floors.vision_ms(tiles), floors.prefill_ms(len(prompt), tiles)
        step = floors.step_ms(len(prompt), tiles)
        test.floors |= {"vision": vision, "prefill": prefill, "ttft": vision + prefill, "tpot": step}
    return test


def _prompt_test(
    decoder: DecoderSession, length: int, workload: LatencyWorkload, floors: Floors | None
) -> _Test:
    ids = np.random.default_rng((workload.seed, length)).integers(0, decoder.vocab_size, (1, length))
    cache = decoder.new_cache(1, length)

    def take_in() -> dict[str, float]:
        cache.lengths[:] = 0
        began = time.perf_counter()
        decoder.run(ids, np.array([length], np.int32), cache)
        return {"prefill": 1000 * (time.perf_counter() - began)}

    test = _Test(f"pp{length}", take_in, {"prefill": length})
    if floors is not None:
        test.floors["prefill"] = floors.prefill_ms(length)
    return test


def _answer_test(
    decoder: DecoderSession, depth: int, workload: LatencyWorkload, floors: Floors | None
) -> _Test:
    ids = np.random.default_rng((workload.seed, depth)).integers(0, decoder.vocab_size, (1, depth))
    cache = decoder.new_cache(1, depth + workload.answer)
    decoder.run(ids, np.array([depth], np.int32), cache)
    one = np.ones(1, np.int32)

    def answer() -> dict[str, float]:
        # What stands behind the prompt is overwritten: it has been taken in once, before all rounds.
        cache.lengths[:] = depth
        began = time.perf_counter()
        for token in range(workload.answer):
            decoder.run(np.array([[token]]), one, cache)
        return {"tpot": 1000 * (time.perf_counter() - began) / workload.answer}

    test = _Test(f"tg{workload.answer}@{depth}", answer, {"tpot": 1})
    if floors is not None:
        test.floors["tpot"] = floors.step_ms(depth + workload.answer // 2)
    return test


def _described(bundle: Bundle, load_s: float) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "variant": manifest.variant,
        "recipe": manifest.recipe["name"],
        "backend": manifest.backend,
        "verified": _has_passed(bundle),
        "bytes": sum(entry.size for entry in manifest.files),
        "load_s": round(load_s, 3),
    }


def _has_passed(bundle: Bundle) -> bool:
    try:
        require_passed(bundle.directory, bundle.manifest)
    except VerificationError:
        return False
    return True
