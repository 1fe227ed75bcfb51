"""What is predicted from a config is what builds then take."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, released_style_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"
GROUPS = ("--set", "weights.language.group_size=64")
RECIPES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": (),
    "int8": (),
    "int4-rtn": (),
    "int4-rtn-g128": (),
    "int4-rtn-vit-int8": (),
    "int8-wo": (),
    "int4-awq": (*GROUPS, "--set", "calibration.count=2"),
    "fp8": ("--set", "calibration.count=2"),
}
# Two models of other proportions than the example: a wide tower, and a decoder with its table tied.
SHAPES = {
    "wide": ModelShape(
        tile_size=112,
        vision_hidden=256,
        vision_intermediate=1024,
        vision_layers=3,
        vision_heads=4,
        hidden=256,
        intermediate=704,
        layers=2,
        heads=8,
        kv_heads=2,
        vocab_size=2048,
        max_positions=1024,
        bos_token_id=256,
        eos_token_id=258,
    ),
    "tied": ModelShape(
        tile_size=56,
        vision_hidden=128,
        vision_intermediate=384,
        vision_layers=2,
        vision_heads=2,
        hidden=512,
        intermediate=1408,
        layers=4,
        heads=8,
        kv_heads=4,
        vocab_size=4096,
        max_positions=2048,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=258,
    ),
}
Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Makes a checkpoint of a shape, or finds the example."""
    made = {"example": EXAMPLE}

    def checkpoint(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            write_random_checkpoint(released_style_config(SHAPES[name]), made[name])
        return made[name]

    return checkpoint


@pytest.mark.parametrize(
    ("recipe", "model"),
    [*((recipe, "example") for recipe in RECIPES), *product(("fp16", "int8", "int4-rtn-g128"), SHAPES)],
)
def test_built_files_have_the_predicted_size(
    recipe: str, model: str, checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(checkpoints(model)), tmp_path / "bundle"
    names, more = ("--recipe", recipe, "--target", "cpu-x86"), RECIPES[recipe]
    assert run(["engine", source, *names, *more, "--no-verify", "-o", str(output)]) == 0
    capsys.readouterr()
    of_recipe = GROUPS if GROUPS[1] in more else ()
    assert run(["plan", source, *names, *of_recipe, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    built = {entry.path: entry.size for entry in EngineManifest.read(output).files}
    graphs = {
        folder: sum(size for path, size in built.items() if path.startswith(folder))
        for folder in ("vision", "llm")
    }
    predicted = planned["files_bytes"]
    assert predicted["vision"] + predicted["llm"] == pytest.approx(sum(graphs.values()), rel=0.02)
    assert planned["disk_bytes"] == pytest.approx(sum(built.values()), rel=0.02)
    results = EngineManifest.read(output).results["prediction"]
    assert results["disk_bytes"]["predicted"] == planned["disk_bytes"]
    assert results["disk_bytes"]["measured"] == sum(built.values())
    assert results["llm_bytes"]["measured"] == graphs["llm"]


def test_a_dry_run_prints_the_plan_of_the_planner(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--recipe", "int4-rtn", "--target", "cpu-x86", "--set", "target.memory.usable_gib=4"]
    figures = ["--set", "target.bandwidth_gb_s=30", "--set", "target.tflops.fp32=0.2"]
    output = ["-o", str(tmp_path / "bundle")]
    assert run(["plan", str(tiny_checkpoint), *names, *figures, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["predicted"]["decode_tokens_per_s"] > 0
    assert run(["engine", str(tiny_checkpoint), *names, *figures, *output, "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert {key: dry[key] for key in planned} == planned
    assert set(dry) > set(planned)


def test_an_engine_that_does_not_fit_is_not_built(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--target", "cpu-x86", "--set", "target.memory.usable_gib=0.5"]
    arguments = ["engine", str(tiny_checkpoint), "--recipe", "int4-rtn", *small]
    assert run([*arguments, "-o", str(tmp_path / "bundle"), "--dry-run", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert run([*arguments, "-o", str(tmp_path / "bundle")]) == 3
    assert "error: the engine needs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_time_and_memory_of_a_build_are_measured(tiny_bundle: Path) -> None:
    results = EngineManifest.read(tiny_bundle).results["prediction"]
    assert results["build_s"]["predicted"] is None
    assert 0 < results["build_s"]["measured"] < 600
    memory = results["build_host_bytes"]
    assert memory["measured"] > 10_000_000
    assert memory["measured_to_predicted"] == pytest.approx(
        memory["measured"] / memory["predicted"], abs=1e-4
    )
