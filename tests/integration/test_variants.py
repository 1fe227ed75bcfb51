"""NVLM-X and NVLM-H on the command line: what is made of them, and what is refused so far."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.kit import BuildKit
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.eval.answerers import open_answerer
from nvlm_deploy.export.tensorrt_llm import load_tensorrt_llm_model
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime.bundle import Bundle, open_engine
from nvlm_deploy.synthetic.documents import samples


@pytest.fixture(scope="module", params=["X", "H"])
def checkpoint(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    parts, output = str(repository / "examples/nvlm-d-tiny"), tmp_path_factory.mktemp("variants") / "made"
    arguments = ["--variant", request.param, "--layers", "1,3", "-o", str(output)]
    assert run(["convert", "--from", parts, "--vision", parts, *arguments]) == 0
    return output


def test_a_converted_model_answers(checkpoint: Path) -> None:
    """Its gates are closed, so it guesses; but it runs from picture to text."""
    (sample,) = samples("heldout", 1)
    assert isinstance(open_answerer(checkpoint)(sample), str)


def test_servers_know_nvlm_d_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(checkpoint), "--format", "hf", "-o", str(tmp_path / "out")]) == 3
    assert "no server knows more than NVLM-D" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_for_tensorrt_llm(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks, command = tmp_path / "ranks", ["export", str(checkpoint), "--format", "trtllm"]
    assert run([*command, "--tp", "2", "-o", str(ranks)]) == 0
    decoder = load_tensorrt_llm_model(ranks)
    assert [i for i, layer in enumerate(decoder.layers) if layer.cross is not None] == [1, 3]
    capsys.readouterr()
    for options, message in (
        (["--pp", "2"], "has no pipeline stages"),
        (["--tp", "4"], "does not divide the 6 heads"),
        (["--version", "0.12-jetson"], "has no decoder with cross-attention"),
    ):
        assert run([*command, *options, "-o", str(tmp_path / "out")]) in (2, 3), options
        assert message in capsys.readouterr().err


def test_a_kit_brings_the_model_class(
    checkpoint: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, names = tmp_path / "kit", ["--recipe", "fp16", "--target", "h100-80gb", "--kit"]
    assert run(["engine", str(checkpoint), *names, "-o", str(kit)]) == 0
    config = NvlmConfig.from_directory(kit)
    assert "nothing asks them yet" in capsys.readouterr().err
    source = repository / "nvlm_deploy/backends/tensorrt_llm/nvlm_mllama.py"
    assert (kit / "llm" / "nvlm_mllama.py").read_bytes() == source.read_bytes()
    page = (kit / "README.md").read_text()
    tiles, per_tile = config.max_tiles + 1, config.visual_tokens_per_tile
    tags = [Tokenizer.from_directory(kit).encode_text(f"<tile_{k}>") for k in range(1, tiles)]
    entries = 1 + tiles * per_tile
    if config.variant == "H":
        entries = 1 + (tiles - 1) * (per_tile + max(map(len, tags)))
        table = load_file(kit / "tile_tags.safetensors")
        assert set(table["ids"].tolist()) == {token for tag in tags for token in tag}
        rows = CheckpointReader(checkpoint).shards.read("language_model.model.embed_tokens.weight")
        assert torch.equal(table["embeddings"], rows[table["ids"]].float())
    assert f"--max_encoder_input_len {entries}" in page
    assert f"--max_prompt_embedding_table_size {per_tile if config.variant == 'H' else 0} " in page
    assert "--model_cls_name NvlmMllamaForCausalLM" in page
    assert run(["compile", str(kit), "-o", str(tmp_path / "bundle"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["arguments"]["BuildConfig"]["max_encoder_input_len"] == entries
    assert plan["arguments"]["PluginConfig"]["use_paged_context_fmha"] is False
    assert not plan["probes"]
    tokenizer = Tokenizer.from_directory(kit)
    prompts = PromptBuilder(tokenizer, config)
    bundle = Bundle(kit, BuildKit.read(kit).bundle, config, tokenizer, prompts)
    with pytest.raises(UnsuitableError, match="does not hand tiles yet"):
        open_engine(bundle, SessionOptions())
    assert run(["engine", str(checkpoint), *names, "--pp", "2", "-o", str(tmp_path / "two")]) == 3
    assert "has no pipeline stages" in capsys.readouterr().err


def test_a_plan_counts_keys_and_values_of_tiles(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--recipe", "fp16", "--target", "h100-80gb", "--json"]
    states = []
    for ranks in ("1", "2"):
        assert run(["plan", str(checkpoint), *names, "--tp", ranks]) == 0
        states.append(json.loads(capsys.readouterr().out)["memory"]["tile_states"])
    assert states[0] == 2 * states[1] > 0


@pytest.mark.parametrize("target", ["rtx-pro-6000-96gb", "jetson-agx-orin-64gb"])
def test_engines_that_have_no_cross_attention_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    backend = ["--set", "backend=tensorrt"] if target.startswith("rtx") else []
    for verb in (
        [
            "engine",
            str(checkpoint),
            "--recipe",
            "fp16",
            "--target",
            target,
            *backend,
            "-o",
            str(tmp_path / "o"),
        ],
        ["plan", str(checkpoint), "--recipe", "fp16", "--target", target, *backend],
    ):
        assert run(verb) == 3, verb
        error = capsys.readouterr().err
        assert "makes engines of NVLM-D only" in error
        assert "--set backend=onnxruntime" in error
    assert not (tmp_path / "o").exists()


def test_a_config_of_another_variant_is_no_secret(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["NVLM_D"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["inspect", str(tmp_path / "config.json")]) == 1
    assert "cross_attention_config is 'given'; supported: none in an NVLM-D" in capsys.readouterr().err
