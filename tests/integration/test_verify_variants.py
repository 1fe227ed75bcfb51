"""NVLM-X and NVLM-H made of the trained example: quantized, held against the released one, and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_deploy.backends import SessionOptions
from nvlm_deploy.cli.main import run
from nvlm_deploy.eval.forced import engine_logits, image_prompt, model_logits, text_prompt
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.verify import VerifyOptions, verify_bundle, verify_checkpoint
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime import Engine
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.synthetic.documents import document
from nvlm_deploy.verify.checks import Check
from nvlm_deploy.verify.contract import Contract
from nvlm_deploy.verify.contract_check import check_contract
from nvlm_deploy.verify.measure import PromptSet
from nvlm_deploy.verify.report import VerifyReport

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"
_GATE = 0.3


def negate(checkpoint: Path, ending: str) -> None:
    """Change the sign of the one tensor whose name ends so."""
    found = 0
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.endswith(ending):
                tensors[name] *= -1
                found += 1
        save_file(tensors, path, {"format": "pt"})
    assert found == 1


@pytest.fixture(scope="module", params=["X", "H"])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with new cross-attention in two layers, whose gates are open; not to be changed."""
    output = tmp_path_factory.mktemp("variants") / "released"
    arguments = ["--variant", request.param, "--layers", "1,3", "-o", str(output)]
    assert run(["convert", "--from", str(EXAMPLE), "--vision", str(EXAMPLE), *arguments]) == 0
    for path in output.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("cross_attn_gate"):
                tensor.fill_(_GATE)
            elif "cross_attn." in name:
                # New ones attend to everything alike, and add next to nothing.
                generator = torch.Generator().manual_seed(len(name))
                tensor.normal_(0, 0.1, generator=generator)
        save_file(tensors, path, {"format": "pt"})
    return output


@pytest.fixture(scope="module")
def quantized(released: Path) -> Path:
    """Its FP8 checkpoint, with an FP8 KV cache; not to be changed."""
    output = released.parent / "quantized"
    options = ["--recipe", "fp8-kv8", "--set", "calibration.count=4", "-o", str(output)]
    assert run(["quantize", str(released), *options]) == 0
    return output


def verified(checkpoint: Path, released: Path) -> VerifyReport:
    return verify_checkpoint(checkpoint, released, VerifyOptions(samples=5))


def failed(report: VerifyReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks if not check.passed}


def test_layers_and_matrices_of_a_healthy_checkpoint_pass(quantized: Path, released: Path) -> None:
    report = verified(quantized, released)
    # Answers and logits of a model that was not trained are no measure.
    assert not [check for check in failed(report).values() if check.group in ("weights", "layers", "tags")]
    names = {each.name for each in report.weights}
    assert "language.layers.1.cross.attention.k_proj.weight" in names
    places = {each.name: each for each in report.layers}
    for layer in (1, 3):
        branch = places[f"language.layers.{layer}.cross"].branch
        assert branch is not None
        assert 0.99 < branch < 1


def test_a_broken_cross_attention_is_found_where_it_is(
    quantized: Path, released: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(quantized, tmp_path / "broken"))
    negate(broken, "layers.3.cross_attn.v_proj.weight_scale")
    found = failed(verified(broken, released))
    assert found["decoder, cosine of a branch"].place == "language.layers.3.cross"


@pytest.fixture(scope="module")
def engine(released: Path) -> Path:
    """Its engine in FP32, verified when it was built; not to be changed."""
    output = released.parent / "engine"
    arguments = ["--recipe", "fp32", "--target", "cpu-x86", "-o", str(output)]
    assert run(["engine", str(released), *arguments]) == 0
    return output


def test_an_engine_is_held_against_its_checkpoint(engine: Path, released: Path) -> None:
    report = verify_bundle(engine, released, VerifyOptions(samples=5))
    assert not failed(report)
    assert {each.name for each in report.weights} >= {
        f"language.layers.3.cross.attention.{kind}_proj.weight" for kind in "qkvo"
    }
    places = {each.name: each for each in report.layers}
    for name in ("attention", "cross", "mlp"):
        branch = places[f"language.layers.3.{name}"].branch
        assert branch is not None
        assert branch > 0.9999
    # Exchanged tags are given to the engine in its own way, and change what they change in the model.
    assert report.reaction.cosine is not None
    assert report.reaction.cosine > 0.999


def test_forced_logits_of_an_engine_are_the_model_s(engine: Path, released: Path) -> None:
    model, tokenizer = load_model(released), Tokenizer.from_directory(released)
    builder = PromptBuilder(tokenizer, model.config)
    page = document("heldout", 0, model.config.tile_size, ("corners",))
    of_engine, of_model = engine_logits(Bundle.open(engine), SessionOptions()), model_logits(model)
    for make in (image_prompt, text_prompt):
        sample = make(page, page.exchanges[0], builder)
        np.testing.assert_allclose(of_engine(sample), of_model(sample), atol=2e-3)


def test_an_engine_with_shifted_tags_is_found(
    engine: Path, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Tokenizer.encode_text

    def shifted(self: Tokenizer, text: str) -> list[int]:
        return encode(self, f"<tile_{int(text[6]) + 1}>" if text.startswith("<tile_1>") else text)

    bundle = Path(shutil.copytree(engine, tmp_path / "engine"))
    contract = Contract(bundle)
    opened = Engine.open(bundle)
    monkeypatch.setattr(Tokenizer, "encode_text", shifted)
    result = check_contract(opened, contract, PromptSet.make(contract, 5).asked)
    assert result.wrong_ids
    assert not result.wrong_tiles


def test_the_command_line_measures_and_quantizes_both(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ["--calibration", "documents", "--set", "count=2", "--statistics", "--json"]
    assert run(["calibrate", str(released), *shown]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cross_tiles"] > 0
    linears = [each["linears"][0] for layer in report["statistics"]["layers"] for each in layer["inputs"]]
    assert "language.layers.3.cross.attention.k_proj" in linears
    output = tmp_path / "int8"
    assert run(["quantize", str(released), "--recipe", "int8-wo", "-o", str(output)]) == 0
    capsys.readouterr()
    config = json.loads((output / "hf_quant_config.json").read_text())["quantization"]
    assert config["quant_algo"] == "W8A16"
    assert not [name for name in config["exclude_modules"] if "cross_attn" in name]
    assert (output / "quantization.json").exists()
