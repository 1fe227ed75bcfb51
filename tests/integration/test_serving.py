"""Directories for servers: written, held against what the servers read, and broken on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.export.serving import LOADERS, check_directory
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.export_serving import check_export
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer

LAYER = "language_model.model.layers.1."
GROUPS = ("--set", "weights.language.group_size=32", "--set", "weights.vision.group_size=16")
Quantized = Callable[[str], Path]


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Quantizes the tiny checkpoint by a recipe, once; not to be changed."""
    folder = tmp_path_factory.mktemp("quantized")

    def make(recipe: str) -> Path:
        output = folder / recipe
        if not output.exists():
            more = GROUPS[:2] if "int4" in recipe else ()
            arguments = [str(tiny_checkpoint), "--recipe", recipe, "--set", "calibration.count=1", *more]
            assert run(["quantize", *arguments, "-o", str(output)]) == 0
        return output

    return make


@pytest.fixture(scope="module")
def served(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """What vLLM opens, by a recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("served")

    def make(recipe: str) -> Path:
        output = folder / recipe
        if not output.exists():
            command = ["export", str(quantized(recipe)), "--format", "vllm", "--check", "-o", str(output)]
            assert run(command) == 0
        return output

    return make


def change(
    directory: Path, name: str, edit: Callable[[Tensor], Tensor | None], new: str | None = None
) -> None:
    """Replace, rename or remove one tensor, in its shard and in the index."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop(name)
    tensors = load_file(directory / shard)
    changed = edit(tensors.pop(name))
    if changed is not None:
        tensors[new or name] = changed.contiguous()
        index["weight_map"][new or name] = shard
    # The shards are linked to those of the source.
    (directory / shard).unlink()
    save_file(tensors, directory / shard)
    path.write_text(json.dumps(index))


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    raw = json.loads(path.read_text())
    edit(raw)
    path.unlink()
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("recipe", ["fp8-kv8", "nvfp4"])
def test_vllm_finds_everything(served: Quantized, recipe: str) -> None:
    report = check_directory(served(recipe), LOADERS["vllm"])
    assert report.findings == ()
    assert report.tensors > 60


def test_what_the_quantizer_leaves_is_whole_but_for_the_rotary_scaling(
    quantized: Quantized, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(quantized("fp8-kv8"))
    assert run(["export", directory, "--format", "hf", "--check"]) == 0
    assert "the unified layout: ok" in capsys.readouterr().out
    assert run(["export", directory, "--format", "vllm", "--check", "--json"]) == 4
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)
    errors = [finding["where"] for finding in report["findings"] if finding["severity"] == "error"]
    assert errors == ["rope_scaling"]
    assert "vLLM cannot serve" in captured.err


@pytest.mark.parametrize(
    ("recipe", "suffix", "edit", "text"),
    [
        ("fp8-kv8", "mlp.up_proj.weight_scale", lambda t: None, "is missing"),
        ("fp8-kv8", "self_attn.k_proj.k_scale", lambda t: None, "is missing"),
        ("fp8-kv8", "self_attn.q_proj.input_scale", lambda t: t.half(), "is F16, and the server expects F32"),
        ("fp8-kv8", "mlp.down_proj.weight", lambda t: t.view(torch.uint8), "the server expects F8_E4M3"),
        ("fp8-kv8", "mlp.gate_proj.weight_scale", lambda t: t.reshape(1), "has the shape [1]"),
        ("nvfp4", "self_attn.v_proj.weight_scale_2", lambda t: t * 2, "is not that of"),
        ("nvfp4", "mlp.up_proj.weight", lambda t: t[:, :-1], "has the shape"),
    ],
)
def test_a_spoiled_tensor_is_named(
    served: Quantized, tmp_path: Path, recipe: str, suffix: str, edit: Callable[..., Any], text: str
) -> None:
    directory = Path(shutil.copytree(served(recipe), tmp_path / "spoiled"))
    change(directory, LAYER + suffix, edit)
    report = check_directory(directory, LOADERS["vllm"])
    fused = suffix.rsplit(".", 1)[1] in ("weight_scale_2",)
    names = {LAYER + suffix, *([LAYER + suffix.replace("v_proj", "q_proj")] if fused else [])}
    assert next(finding.where for finding in report.errors if text in finding.text) in names


def test_a_wrong_name_is_missing_and_too_many(served: Quantized, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(served("fp8-kv8"), tmp_path / "renamed"))
    name = f"{LAYER}mlp.down_proj.input_scale"
    change(directory, name, lambda tensor: tensor, name.replace("input_scale", "act_scale"))
    found = {finding.where: finding.text for finding in check_directory(directory, LOADERS["vllm"]).errors}
    assert found[name] == "is missing"
    assert "no parameter for" in found[name.replace("input_scale", "act_scale")]
    (own,) = check_export("hf", directory)
    assert [finding.where for finding in own.errors] == ["tensors"]


def test_excludes_that_do_not_fit_the_tensors_are_found(served: Quantized, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(served("fp8-kv8"), tmp_path / "excluded"))
    module = f"{LAYER}mlp.down_proj"
    edit_json(
        directory / "hf_quant_config.json", lambda raw: raw["quantization"]["exclude_modules"].append(module)
    )
    errors = check_directory(directory, LOADERS["vllm"]).errors
    assert any("exclude_modules is" in finding.text for finding in errors)
    assert (f"{module}.weight", True) in [
        (f.where, "F8_E4M3, and the server expects" in f.text) for f in errors
    ]


@pytest.mark.parametrize(
    ("edit", "where", "text"),
    [
        (
            lambda raw: raw.update(architectures=["InternVLChatModel"]),
            "architectures",
            "no class for InternVL",
        ),
        (lambda raw: raw.update(model_type="internvl"), "model_type", "not 'NVLM_D'"),
        (lambda raw: raw.pop("quantization_config"), "quantization", "config.json does not"),
        (
            lambda raw: raw["quantization_config"].update(quant_method="fp8"),
            "quantization",
            "quant_method is 'fp8', not 'modelopt'",
        ),
        (lambda raw: raw["llm_config"].update(num_hidden_layers=1), LAYER, "no parameter for"),
    ],
)
def test_a_wrong_config_is_named(
    served: Quantized, tmp_path: Path, edit: Callable[..., Any], where: str, text: str
) -> None:
    directory = Path(shutil.copytree(served("fp8-kv8"), tmp_path / "config"))
    edit_json(directory / "config.json", edit)
    errors = check_directory(directory, LOADERS["vllm"]).errors
    assert any(finding.where.startswith(where) and text in finding.text for finding in errors)


def test_formats_that_a_server_does_not_read_are_refused(
    quantized: Quantized, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(quantized("int4-gptq"))
    assert run(["export", source, "--format", "vllm", "--check"]) == 4
    assert "W4A16_AWQ is not read by vLLM: FP8, NVFP4, W4A16_NVFP4" in capsys.readouterr().err
    decoder = tmp_path / "decoder"
    # SGLang does not read it, TensorRT-LLM does.
    assert run(["export", source, "--format", "hf-decoder", "--check", "--json", "-o", str(decoder)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [report["ok"] for report in result["check"]] == [False, True]
    assert "language_model." not in (decoder / "model.safetensors.index.json").read_text()


def test_the_decoder_alone_is_what_transformers_opens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its own class, its own names: the logits of a text are those of the whole model."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path / "decoder"
    arguments = ["export", str(tiny_checkpoint), "--format", "hf-decoder", "--check", "-o", str(directory)]
    assert run(arguments) == 0
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    ids_BS = torch.arange(24).reshape(1, 24) * 7 % 250
    with torch.no_grad():
        decoder = load_model(tiny_checkpoint).language
        expected_BSV = decoder.logits(decoder(decoder.embed_tokens(ids_BS)))
        found_BSV = theirs(ids_BS).logits
    torch.testing.assert_close(found_BSV, expected_BSV, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tiles", [0, 1, 4])
def test_the_chat_template_gives_the_released_prompt(
    tiny_checkpoint: Path, repository: Path, tiles: int
) -> None:
    """As a server renders and expands it: the token ids are those of this project's own prompt."""
    config, tokenizer = NvlmConfig.from_directory(tiny_checkpoint), Tokenizer.from_directory(tiny_checkpoint)
    template = jinja2.Template((repository / "docs" / "serving" / "nvlm.jinja").read_text())
    image = [{"type": "image_url"}] if tiles else []
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is the total?"}, *image]}]
    text = template.render(messages=messages, add_generation_prompt=True)
    tags = [f"<tile_{i}>" for i in range(1, tiles)] + [config.thumbnail_tag]
    pads = "<|vision_pad|>" * config.visual_tokens_per_tile
    text = text.replace("<image>", "<Image>" + "".join(tag + pads for tag in tags) + "</Image>")
    ours = PromptBuilder(tokenizer, config, "hf").build("What is the total?", [tiles] if tiles else [])
    assert tokenizer.encode(text) == ours.input_ids.tolist()


def test_the_request_is_checked(quantized: Quantized, tmp_path: Path) -> None:
    source = str(quantized("fp8-kv8"))
    assert run(["export", source, "--format", "vllm"]) == 2
    assert run(["export", source, "--format", "vllm", "--tp", "2", "-o", str(tmp_path / "a")]) == 2
    assert run(["export", source, "--format", "trtllm", "--check"]) == 2
    assert run(["export", str(tmp_path), "--format", "vllm", "--check"]) == 1
    assert list(tmp_path.iterdir()) == []
