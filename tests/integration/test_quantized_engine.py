"""From a released checkpoint to an engine through a quantized checkpoint, in one command and in two."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.runtime import Engine

RECIPE = "fp8"
SMALL = ("--set", "calibration.count=2")


def digests(bundle: Path) -> dict[str, str]:
    graphs = [path for path in bundle.rglob("*") if path.is_file() and ".onnx" in path.name]
    return {str(p.relative_to(bundle)): hashlib.sha256(p.read_bytes()).hexdigest() for p in graphs}


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "fp8"
    assert run(["quantize", str(tiny_checkpoint), "--recipe", RECIPE, *SMALL, "-o", str(output)]) == 0
    return output


def engine(checkpoint: Path, output: Path, *options: str) -> int:
    return run(["engine", str(checkpoint), "--target", "cpu-x86", "--no-verify", "-o", str(output), *options])


def test_one_command_makes_what_two_make(tmp_path: Path, tiny_checkpoint: Path, quantized: Path) -> None:
    assert engine(quantized, tmp_path / "two") == 0
    assert engine(tiny_checkpoint, tmp_path / "one", "--recipe", RECIPE, *SMALL) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    # Nothing else is left: neither the quantized checkpoint nor unfinished work.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    one, two = (EngineManifest.read(tmp_path / name) for name in ("one", "two"))
    assert one.checkpoint_fingerprint == two.checkpoint_fingerprint
    assert one.recipe == two.recipe
    assert one.quantization is not None
    assert one.quantization["calibration"]["count"] == 2
    assert len(Engine.open(tmp_path / "one").generate("Hello", max_new_tokens=2).output_ids) == 2


def test_an_engine_that_fails_keeps_the_quantized_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvlm_deploy.backends.onnxruntime import build as maker
    from nvlm_deploy.pipeline import quantize as quantize_stage

    def fail(*_: object, **__: object) -> None:
        raise OSError("the power went out")

    with monkeypatch.context() as patched:
        patched.setattr(maker, "build_engine", fail)
        assert engine(tiny_checkpoint, tmp_path / "bundle", "--recipe", RECIPE, *SMALL) == 1
    kept = tmp_path / ".bundle.quantized"
    assert json.loads((kept / "quantization.json").read_text())["recipe"]["name"] == RECIPE

    def quantize_again(*_: object) -> None:
        raise AssertionError("what is there already is quantized again")

    monkeypatch.setattr(quantize_stage, "_Quantizer", quantize_again)
    assert engine(tiny_checkpoint, tmp_path / "bundle", "--recipe", RECIPE, *SMALL) == 0
    assert not kept.exists()


def test_other_numbers_are_quantized_anew(tmp_path: Path, tiny_checkpoint: Path, quantized: Path) -> None:
    other = tmp_path / ".bundle.quantized"
    other.mkdir()
    for path in quantized.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    options = ("--set", "calibration.count=3")
    assert engine(tiny_checkpoint, tmp_path / "bundle", "--recipe", RECIPE, *options) == 0
    manifest = EngineManifest.read(tmp_path / "bundle")
    assert manifest.quantization is not None
    assert manifest.quantization["calibration"]["count"] == 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--recipe", "int4-awq"), 2, "is quantized by the recipe fp8, not int4-awq"),
        (("--set", "weights.language={format: fp16}"), 1, "the weights are not quantized"),
        (("--set", "weights.lm_head={format: int8, algorithm: max}"), 1, "is stored as"),
        (("--set", "weights.embedding.format=int9"), 2, "weights.embedding.format"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    quantized: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert engine(quantized, tmp_path / "bundle", *options) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_in_floats_may_be_stored_otherwise(tmp_path: Path, quantized: Path) -> None:
    smaller = ("--set", "weights.embedding={format: int8, group_size: 32}")
    assert engine(quantized, tmp_path / "bundle", *smaller) == 0
    manifest = EngineManifest.read(tmp_path / "bundle")
    sizes = {size.part: size for size in manifest.sizes}
    assert sizes["embedding"].after < 0.6 * sizes["embedding"].before


def test_a_released_checkpoint_needs_a_recipe(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine(tiny_checkpoint, tmp_path / "bundle") == 2
    assert "is not quantized, so it needs a recipe" in capsys.readouterr().err


def test_a_quantized_checkpoint_without_its_record_says_so(
    tmp_path: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in quantized.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    record = copy / "quantization.json"
    raw = json.loads(record.read_text())
    del raw["recipe"]
    record.write_text(json.dumps(raw))
    assert engine(copy, tmp_path / "bundle") == 1
    assert "the key 'recipe' is missing" in capsys.readouterr().err
    record.unlink()
    assert engine(copy, tmp_path / "bundle") == 1
    assert "has no quantization.json" in capsys.readouterr().err
