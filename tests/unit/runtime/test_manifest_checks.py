"""Manifests of compiled engines held against machines; sections that contradict each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nvlm_deploy.backends.protocol import GraphFacts
from nvlm_deploy.config.machine import Machine, parse_driver_cuda, parse_gpu_query
from nvlm_deploy.config.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    FileEntry,
    PromptSettings,
    TilerSettings,
)
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.runtime.manifest_checks import (
    config_mismatches,
    file_mismatches,
    graph_mismatches,
    machine_mismatches,
)
from nvlm_deploy.synthetic.shapes import released_style_config
from tests.conftest import TINY_SHAPE

H100 = Machine("x86_64", 90, "580.82.07", "13.0", {"tensorrt": "10.14.1.48", "tensorrt_llm": "1.2.1"})
CONFIG = NvlmConfig.from_dict(released_style_config(TINY_SHAPE))
VALUES = {"tiles": {"dtype": "uint8", "shape": ["tiles", 56, 56, 3]}}


def manifest(**changes: Any) -> EngineManifest:
    """What TensorRT-LLM engines for an H100 say."""
    tokens = CONFIG.visual_tokens_per_tile
    whole = EngineManifest(
        format_version=FORMAT_VERSION,
        project_version="0.1.0",
        variant="D",
        backend="tensorrt_llm",
        recipe={"name": "fp8"},
        target={"name": "h100-80gb", "backend": "tensorrt_llm", "architecture": "x86_64", "sm": 90},
        checkpoint_fingerprint="f" * 64,
        quantization=None,
        tool_versions={
            "tensorrt": "10.14.1.48",
            "tensorrt_llm": "1.2.1",
            "cuda": "13.0",
            "driver": "580.65.06",
        },
        context=512,
        tiler=TilerSettings(56, CONFIG.min_tiles, CONFIG.max_tiles, True, tokens),
        prompt=PromptSettings("hf", CONFIG.thumbnail_tag),
        vision={"model": "vision/vision.plan", "inputs": VALUES, "outputs": {}, "tile_size": 56},
        llm={"model": "llm/rank0.engine", "context_length": 512, "vocab_size": 320},
        sizes=(),
        files=(FileEntry("vision/vision.plan", 1, "0"), FileEntry("llm/rank0.engine", 1, "0")),
        results={},
    )
    return replace(whole, **changes)


def test_the_machine_that_it_was_built_on_fits() -> None:
    assert machine_mismatches(manifest(), H100) == []
    assert config_mismatches(manifest(), CONFIG) == []
    assert file_mismatches(manifest()) == []


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (replace(H100, sm=89), "target.sm is 90, and this machine has 89"),
        (replace(H100, sm=None), "target.sm is 90, and this machine has null"),
        (
            replace(H100, architecture="aarch64"),
            'target.architecture is "x86_64", and this machine has "aarch64"',
        ),
        (
            replace(H100, versions={**H100.versions, "tensorrt": "10.15.1.29"}),
            'tool_versions.tensorrt is "10.14.1.48", and this machine has "10.15.1.29"',
        ),
        (
            replace(H100, versions={"tensorrt": "10.14.1.48"}),
            'tool_versions.tensorrt_llm is "1.2.1", and this machine has nothing',
        ),
        (replace(H100, cuda="12.8"), 'tool_versions.cuda is "13.0", and this machine\'s driver runs "12.8"'),
        (
            replace(H100, driver="570.26"),
            'tool_versions.driver is "580.65.06", and this machine has "570.26"',
        ),
    ],
)
def test_another_machine_is_named_by_field(machine: Machine, text: str) -> None:
    assert [str(found) for found in machine_mismatches(manifest(), machine)] == [text]


def test_graphs_run_on_any_machine() -> None:
    portable = manifest(backend="onnxruntime", target={"backend": "onnxruntime", "sm": None})
    assert machine_mismatches(portable, Machine("aarch64")) == []


def test_engines_of_a_patch_release_fit_a_build_number_apart() -> None:
    other = replace(H100, versions={**H100.versions, "tensorrt": "10.14.1.48.post1"})
    assert machine_mismatches(manifest(), other) == []


def test_sections_that_contradict_each_other_are_named() -> None:
    wrong = manifest(backend="tensorrt", context=400, vision={"model": "vision/other.plan", "tile_size": 448})
    found = [mismatch.field for mismatch in (*config_mismatches(wrong, CONFIG), *file_mismatches(wrong))]
    assert found == ["vision.tile_size", "backend", "llm.context_length", "vision.model"]
    (longer,) = config_mismatches(manifest(context=513, llm={}), CONFIG)
    assert str(longer) == "context is 513, and config.json allows no more than 512"


def test_an_engine_of_another_bundle_is_named_by_its_record() -> None:
    record = {**manifest().record(), "recipe": {"name": "int4-awq"}}
    facts = GraphFacts(VALUES, {}, record=record)
    (found,) = graph_mismatches(manifest(), "vision", facts)
    assert str(found) == 'recipe.name is "fp8", and vision/vision.plan was made with "int4-awq"'
    assert graph_mismatches(manifest(), "vision", GraphFacts(VALUES, {})) == []


def test_what_nvidia_smi_prints_is_read() -> None:
    assert parse_gpu_query("9.0, 580.82.07\n8.9, 580.82.07\n") == [(90, "580.82.07"), (89, "580.82.07")]
    assert parse_gpu_query("[N/A], 540.4.0\n") == [(None, "540.4.0")]
    frame = "| NVIDIA-SMI 580.82.07    Driver Version: 580.82.07      CUDA Version: 13.0     |"
    assert parse_driver_cuda(frame) == "13.0"
    assert parse_driver_cuda("no GPU") is None
