"""New models from parts: which tensors are taken over, which are new, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nvlm_deploy.checkpoint import CheckpointReader
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.convert import AssembleRequest, assemble
from nvlm_deploy.preprocess import Tokenizer


@pytest.mark.parametrize("variant", ["X", "H"])
def test_parts_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path, variant: str) -> None:
    output = tmp_path / "made"
    _, new = assemble(AssembleRequest(tiny_checkpoint, tiny_checkpoint, variant, output, layers=(1,)))  # type: ignore[arg-type]
    source, made = load_model(tiny_checkpoint), load_model(output)
    taken = dict(made.state_dict())
    for name, value in source.state_dict().items():
        if variant == "H" or not name.startswith("projector."):
            assert torch.equal(taken[name], value), name
    assert not taken["language.layers.1.cross.gate"].any()
    assert taken["language.layers.1.cross.attention.q_proj.weight"].std() > 0.01
    assert all("cross_attn" in name or (variant == "X" and name.startswith("mlp1.1")) for name in new)
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        assert torch.equal(made(ids), source(ids))


def test_parts_that_stand_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A language model as Hugging Face stores it, without a placeholder token; a tower of real heads."""
    language, vision = tmp_path / "llm", tmp_path / "vit"
    split_checkpoint(tiny_checkpoint, language, vision)
    output = tmp_path / "made"
    assemble(AssembleRequest(language, vision, "D", output))
    source, made = load_model(tiny_checkpoint), load_model(output)
    for name, value in source.state_dict().items():
        if not name.startswith("projector."):
            assert torch.equal(made.state_dict()[name], value), name
    assert (
        Tokenizer.from_directory(output).image_token_id == Tokenizer.from_directory(tiny_checkpoint).size - 1
    )
    CheckpointReader(output)


def split_checkpoint(checkpoint: Path, language: Path, vision: Path) -> None:
    reader = CheckpointReader(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    width, padded = reader.config.vision.hidden_size, reader.config.vision.padded_hidden_size
    llm, vit = {}, {}
    for name in reader.names():
        value = reader.read(name)
        if name.startswith("language_model."):
            llm[name.removeprefix("language_model.")] = value
        if name.endswith("attn.qkv.weight"):
            value = value.view(3, padded, -1)[:, :width].reshape(3 * width, -1).contiguous()
        elif name.endswith(("attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight")):
            value = value[..., :width].contiguous()
        if name.startswith("vision_model."):
            vit[name.removeprefix("vision_model.")] = value
    for directory, tensors, section in ((language, llm, "llm_config"), (vision, vit, "vision_config")):
        directory.mkdir()
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config[section]))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|vision_pad|>"]
    (language / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_parts_that_do_not_fit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    language, vision = tmp_path / "llm", tmp_path / "vit"
    split_checkpoint(tiny_checkpoint, language, vision)
    output = tmp_path / "made"
    with pytest.raises(NvlmError, match=r"llm_config\.architectures is \['InternVisionModel'\]"):
        assemble(AssembleRequest(vision, vision, "X", output, layers=(1,)))
    (language / "model.safetensors").rename(language / "moved")
    save_file({"lm_head.weight": torch.zeros(320, 64)}, language / "model.safetensors")
    with pytest.raises(
        NvlmError, match=r"has no tensor language_model\.model\.embed_tokens\.weight, with or"
    ):
        assemble(AssembleRequest(language, vision, "X", output, layers=(1,)))
    (language / "moved").rename(language / "model.safetensors")
    with pytest.raises(NvlmError, match=r"cross_attention_config\.layers is \[7\]; supported: ascending"):
        assemble(AssembleRequest(language, vision, "X", output, layers=(7,)))
    with pytest.raises(UsageError, match="an NVLM-D has no cross-attention"):
        assemble(AssembleRequest(language, vision, "D", output, layers=(1,)))
    assert not output.exists()
