"""Benchmarks on random weights of a named shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nvlm_deploy.bench.run import Report, Workload, measure
from nvlm_deploy.bench.subjects import EngineSubject, Subject, TransformersSubject
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import UsageError, did_you_mean
from nvlm_deploy.progress import ProgressCallback
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

DEFAULT_RECIPES = ("fp32", "int8", "int4-rtn", "int4-rtn-g128")


def bench_shape(
    shape: str,
    recipes: Sequence[str],
    workload: Workload,
    threads: int | None,
    directory: Path,
    progress: ProgressCallback,
) -> Report:
    """Write a random checkpoint below `directory`, build an engine per recipe, and measure all.

    Raises:
        UsageError: an unknown shape or recipe.
    """
    if shape not in SHAPES:
        raise UsageError(f"there is no shape '{shape}'", hint=did_you_mean(shape, SHAPES))
    for recipe in recipes:
        load_yaml_model("recipe", recipe, Recipe)
    sizes, used = SHAPES[shape], threads or os.cpu_count() or 1
    checkpoint = directory / "checkpoint"
    write_random_checkpoint(released_style_config(sizes), checkpoint)
    # A page of 64 covers what the rounds append to the prompt.
    context = workload.prompt_tokens + workload.decode_tokens + 64
    subjects: list[Subject] = [TransformersSubject(checkpoint, used)]
    for number, recipe in enumerate(recipes, start=1):
        subjects.append(EngineSubject(checkpoint, recipe, directory / f"engine-{number}", context, used))
        progress("build", number, len(recipes))
    return measure(
        shape,
        subjects,
        sizes.tile_size,
        sizes.vocab_size,
        workload,
        used,
        lambda done, total: progress("measure", done, total),
    )
