"""NVLM-D, X and H of equal width, side by side on the same images: where the time to the first token goes.

Everyone does the same work in turn, round by round; medians are reported.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvlm_deploy.backends import SessionOptions, open_decoder_session, open_tile_session, open_vision_session
from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.backends.onnxruntime.build import DECODER_PATH, TILES_PATH, VISION_PATH, build_engine
from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.backends.protocol import Float32, SeenTiles
from nvlm_deploy.bench.requests import BenchRequest, bench_request
from nvlm_deploy.bench.run import environment
from nvlm_deploy.bench.variant_report import Stages, VariantFigures, VariantReport, VariantWorkload
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.cross_attention import every
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.planner.workload import prompt_tokens
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.quantization.checkpoint import open_weights
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.runtime.seen_tiles import first_look, later_look
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import SHAPES, cross_style_config, released_style_config

BACKEND = "onnxruntime"
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class VariantSettings:
    """What is measured. interval: decoder layers from one with cross-attention to the next."""

    shape: str
    interval: int
    recipe: str
    workload: VariantWorkload
    threads: int | None = None


class VariantSubject:
    """An engine of one variant, opened, and what it has taken so far."""

    def __init__(self, variant: str, directory: Path, config: NvlmConfig, context: int, threads: int) -> None:
        options, before = SessionOptions(threads=threads), _resident_bytes()
        self.variant, self.config = variant, config
        self._vision = open_vision_session(BACKEND, directory / VISION_PATH, options)
        self._decoder = open_decoder_session(BACKEND, directory / DECODER_PATH, options)
        self._tiles = None
        if config.cross_attention is not None:
            self._tiles = open_tile_session(BACKEND, directory / TILES_PATH, options)
        self._cache = self._decoder.new_cache(1, context)
        self._seen: SeenTiles | None = None
        self._encoded: dict[int, tuple[Float32, float]] = {}
        self._before = before
        self.engine_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    @property
    def memory_bytes(self) -> int | None:
        """By how much this process has grown since this engine was opened."""
        now = _resident_bytes()
        return None if now is None or self._before is None else now - self._before

    @property
    def tile_state_bytes(self) -> int:
        """Keys and values of the tiles of the last image."""
        return 0 if self._seen is None else self._seen.states.nbytes

    def encode(self, request: BenchRequest) -> None:
        """Take a request's tiles through the tower."""
        began = time.perf_counter()
        tokens_TND = self._vision.encode(request.tiles)
        self._encoded[len(request.tiles)] = tokens_TND, time.perf_counter() - began

    def first_token(self, request: BenchRequest) -> Stages:
        """Seconds from tiles to the first token, stage by stage; the tower's are those of `encode`."""
        attended = self.config.cross_tiles(len(request.tiles))
        tokens_TND, vision_s = self._encoded[len(request.tiles)]
        encoded = time.perf_counter()
        states = [] if self._tiles is None or not attended else [self._tiles.states(tokens_TND[:attended])]
        self._seen = first_look([request.prompt], [states])
        stated = time.perf_counter()
        self._cache.lengths[:] = 0
        visual_VD = tokens_TND[attended:].reshape(-1, tokens_TND.shape[-1])
        places_V = request.prompt.visual_positions
        self._decoder.run(
            request.prompt.input_ids[None],
            np.array([len(request.prompt)], np.int32),
            self._cache,
            visual_VD,
            np.column_stack([np.zeros_like(places_V), places_V]),
            tiles=self._seen,
        )
        done = time.perf_counter()
        return Stages(vision_s, stated - encoded, done - stated)

    def decode(self, tokens: int) -> float:
        """Seconds for so many more tokens."""
        seen = None if self._seen is None else later_look(self._seen)
        began = time.perf_counter()
        for token in range(tokens):
            self._decoder.run(np.array([[token]]), np.ones(1, np.int32), self._cache, tiles=seen)
        return time.perf_counter() - began


def bench_variants(settings: VariantSettings, directory: Path, progress: ProgressCallback) -> VariantReport:
    """Write three random checkpoints below `directory`, build their engines, and measure all.

    Raises:
        UsageError: an unknown shape or recipe, or more tiles than an image has.
    """
    raw_configs = variant_configs(settings.shape, settings.interval)
    recipe = load_yaml_model("recipe", settings.recipe, Recipe)
    if recipe.makes_checkpoint:
        raise UsageError(f"recipe {recipe.name} needs calibration", hint="int4-rtn, int8 and fp32 do not")
    workload, threads = settings.workload, settings.threads or os.cpu_count() or 1
    configs = {variant: NvlmConfig.from_dict(raw) for variant, raw in raw_configs.items()}
    _check_tiles(workload.tiles, configs["D"])
    context = max(prompt_tokens(c, n) for c in configs.values() for n in workload.tiles)
    context += workload.decode_tokens + 1
    for number, (variant, raw) in enumerate(raw_configs.items(), start=1):
        write_random_checkpoint(raw, directory / variant)
        _build(directory / variant, directory / f"{variant}-engine", recipe, context)
        progress("build", number, len(configs))
    measured = []
    for variant, config in configs.items():
        subject = VariantSubject(variant, directory / f"{variant}-engine", config, context, threads)
        measured.append((subject, _warmed(subject, workload)))
    for done in _rounds(measured, workload):
        progress("measure", done, workload.rounds)
    return VariantReport(
        settings.shape,
        settings.interval,
        recipe.name,
        workload,
        environment(threads),
        tuple(figures for _, figures in measured),
    )


def variant_configs(name: str, interval: int) -> dict[str, dict[str, Any]]:
    """`config.json` objects of the three variants of a shape, cross-attention every `interval` layers.

    Raises:
        UsageError: an unknown shape, or too few layers.
    """
    if name not in SHAPES:
        raise UsageError(f"there is no shape '{name}'", hint=did_you_mean(name, SHAPES))
    shape = SHAPES[name]
    layers = every(interval, shape.layers)
    if not layers:
        raise UsageError(f"{shape.layers} decoder layers have no cross-attention every {interval}")
    return {
        "D": released_style_config(shape),
        "X": cross_style_config(shape, "X", layers),
        "H": cross_style_config(shape, "H", layers),
    }


def _check_tiles(tiles: Sequence[int], config: NvlmConfig) -> None:
    most = config.max_tiles + 1
    wrong = [n for n in tiles if not 1 <= n <= most or n == 2]
    if wrong:
        raise UsageError(
            f"no image has {wrong[0]} tiles here",
            hint=f"one, or two to {config.max_tiles} and a thumbnail: 1, 3, ..., {most}",
        )


def _build(checkpoint: Path, engine: Path, recipe: Recipe, context: int) -> None:
    weights = open_weights(checkpoint)
    config = weights.reader.config
    plan = adapt(resolve(recipe, parameter_shapes(config)))
    tags = tile_tags(Tokenizer.from_directory(checkpoint), config)
    build_engine(weights, config, plan, EngineSettings(context, tags=tags), engine)


def _warmed(subject: VariantSubject, workload: VariantWorkload) -> VariantFigures:
    """Answer the largest request once, and see what that takes."""
    most = max(workload.tiles)
    request = bench_request(subject.config, most, workload.seed)
    subject.encode(request)
    subject.first_token(request)
    subject.decode(1)
    return VariantFigures(
        variant=subject.variant,
        engine_bytes=subject.engine_bytes,
        memory_bytes=subject.memory_bytes,
        tile_state_bytes=subject.tile_state_bytes,
        prompt_tokens={n: prompt_tokens(subject.config, n) for n in workload.tiles},
        stages={n: [] for n in workload.tiles},
        decode_s=[],
    )


def _rounds(
    measured: Sequence[tuple[VariantSubject, VariantFigures]], workload: VariantWorkload
) -> Iterator[int]:
    for number in range(workload.rounds):
        for tiles in sorted(workload.tiles):
            for subject, figures in measured:
                request = bench_request(subject.config, tiles, workload.seed)
                if number < workload.vision_rounds:
                    subject.encode(request)
                figures.stages[tiles].append(subject.first_token(request))
        for subject, figures in measured:
            figures.decode_s.append(subject.decode(workload.decode_tokens))
        yield number + 1


def _resident_bytes() -> int | None:
    """Resident memory of this process; None where it cannot be read."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else int(found.group(1)) * 1024
