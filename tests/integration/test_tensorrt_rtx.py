"""Engines compiled ahead of time by TensorRT-RTX, from the command line, without a GPU."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nvlm_deploy.backends.tensorrt.dialects import Part
from nvlm_deploy.bench.plans import DEFAULT_CAPABILITIES, bench_plans
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import verify_files
from nvlm_deploy.progress import no_progress
from nvlm_deploy.synthetic.shapes import SHAPES, ModelShape

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")

CONTEXT = 256
# FP8 and BF16 have no kernels for the narrowest matrices.
SHAPE = ModelShape(
    tile_size=56,
    vision_hidden=128,
    vision_intermediate=256,
    vision_layers=1,
    vision_heads=2,
    hidden=256,
    intermediate=512,
    layers=1,
    heads=4,
    kv_heads=2,
    vocab_size=320,
    max_positions=512,
    bos_token_id=256,
    eos_token_id=258,
)
DEVICES = {80: "a100-80gb", 86: "l40s-48gb", 89: "l40s-48gb", 120: "rtx-5090-32gb"}


def arguments(checkpoint: Path, target: str, output: Path, recipe: str, *sets: str) -> list[str]:
    changes = ["backend=tensorrt_rtx"] if not any(each.startswith("backend=") for each in sets) else []
    changes += [f"target.max_context={CONTEXT}", *sets]
    named = ["--recipe", recipe, "--target", target, "-o", str(output)]
    return ["engine", str(checkpoint), *named, *(text for each in changes for text in ("--set", each))]


def built(checkpoint: Path, target: str, output: Path, recipe: str, *sets: str) -> dict[str, Any]:
    assert run(arguments(checkpoint, target, output, recipe, *sets)) == 0
    verify_files(output)
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


@pytest.mark.parametrize("sm", DEVICES)
def test_a_bundle_for_every_generation(
    tiny_checkpoint: Path, tmp_path: Path, sm: int, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = built(tiny_checkpoint, DEVICES[sm], tmp_path / "bundle", "fp16", f"target.sm={sm}")
    assert manifest["backend"] == "tensorrt_rtx"
    assert manifest["tool_versions"]["tensorrt_rtx"] == manifest["vision"]["plan"]["version"] == "1.7.1.116"
    for part, profiles in (("vision", 1), ("llm", 1)):
        plan = manifest[part]["plan"]
        path = tmp_path / "bundle" / manifest[part]["model"]
        assert (plan["sm"], plan["floats"], len(plan["profiles"])) == (sm, "fp16", profiles)
        assert path.stat().st_size == plan["bytes"]
        assert f"sm_{sm}".encode() in path.read_bytes() or f"sm{sm}".encode() in path.read_bytes()
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert manifest["vision"]["plan"]["profiles"][0]["tiles"] == [1, 7, 7]
    assert manifest["vision"]["plan"]["fp16_check"]["cosine"] > 0.999
    assert manifest["llm"]["kv_cache"]["in_place"] is True
    assert manifest["llm"]["kv_cache"]["shape"] == ["batch", 2, CONTEXT, 16]
    assert "not verified: its graphs are compiled for a GPU" in capsys.readouterr().err


def test_int4_and_bf16(tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = (
        "algorithm=max",
        "weights.language.group_size=32",
        "calibration.count=2",
        "target.compute=bf16",
    )
    manifest = built(tiny_checkpoint, "l40s-48gb", tmp_path / "bundle", "int4-awq", *changes)
    assert manifest["llm"]["plan"]["floats"] == manifest["vision"]["plan"]["floats"] == "bf16"
    assert manifest["llm"]["kv_cache"]["dtype"] == "bfloat16"
    assert "fp16_check" not in manifest["vision"]["plan"]


def test_what_a_gpu_does_not_have_is_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FP8 before Ada, by the target's own list; and GPUs that TensorRT-RTX does not know."""
    assert run(arguments(tiny_checkpoint, "a100-80gb", tmp_path / "b", "fp8-vit-fp8")) == 3
    assert "needs a GPU of compute capability 8.9, and a100-80gb has 8.0" in capsys.readouterr().err
    assert run(arguments(tiny_checkpoint, "l40s-48gb", tmp_path / "b", "fp16", "target.sm=90")) == 3
    assert "TensorRT-RTX compiles for" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_plans_of_tensorrt_are_made_on_their_device(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = arguments(tiny_checkpoint, "jetson-agx-orin-64gb", tmp_path / "b", "fp16", "backend=tensorrt")
    assert run([*named, "--dry-run"]) == 0
    capsys.readouterr()
    assert run(named) == 0
    assert "cannot be compiled here, so this is a build kit" in capsys.readouterr().err
    assert (tmp_path / "b" / "kit.json").exists()
    assert not list((tmp_path / "b").rglob("*.plan"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_bundle_is_not_opened_without_a_gpu(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built(tiny_checkpoint, "l40s-48gb", tmp_path / "bundle", "fp16")
    assert run(["run", str(tmp_path / "bundle"), "--prompt", "Hello"]) == 3
    assert "for the GPU of l40s-48gb, and this machine has none" in capsys.readouterr().err
    assert run(["verify", str(tmp_path / "bundle"), "--against", str(tiny_checkpoint)]) == 3
    assert "was compiled by tensorrt_rtx" in capsys.readouterr().err


def test_every_form_of_both_parts(tmp_path: Path) -> None:
    rows = list(bench_plans(SHAPE, (89,), CONTEXT, tmp_path, no_progress))
    made = {(row.part, row.form): row for row in rows}
    assert all(row.bytes > 0 and not row.refused for row in rows)
    assert len(made) == len(rows) == 6
    assert made["llm", "int4"].bytes < made["llm", "fp16"].bytes


def test_plans_of_a_realistic_size(
    tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """All of InternViT-300M for 1 to 7 tiles, and two layers of Qwen2-0.5B with all of its vocabulary."""
    shape = replace(SHAPES["nvlm-d-0.5b"], layers=2)
    forms: dict[Part, tuple[str, ...]] = {"vision": ("fp16",), "llm": ("fp16", "int4")}
    rows = list(bench_plans(shape, DEFAULT_CAPABILITIES, 1024, tmp_path, no_progress, forms))
    assert [(row.form, row.sm) for row in rows] == [
        (form, sm) for form in ("fp16", "fp16", "int4") for sm in DEFAULT_CAPABILITIES
    ]
    for row in rows:
        assert not row.refused
        # A plan holds its weights once, and little else.
        assert 0.99 * row.weights <= row.bytes <= 1.02 * row.weights
        line = f"{row.part} {row.form} SM {row.sm}: {row.bytes / 1e6:,.1f} MB, {row.cpu_seconds:.0f} CPU s"
        record_property(f"{row.part}_{row.form}_{row.sm}", line)
        with capsys.disabled():
            print(f"\n{line}", end="")  # noqa: T201
