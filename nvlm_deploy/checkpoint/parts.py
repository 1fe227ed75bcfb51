"""A new NVLM made of parts that exist: a language model, a vision tower, and new weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.checkpoint.rules import Shape
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.checkpoint.weight_table import ReleasedTensor
from nvlm_deploy.config.model import NvlmConfig, Variant
from nvlm_deploy.config.strict_json import read_json_object
from nvlm_deploy.errors import NvlmError

_DEVIATION = 0.02
_LANGUAGE, _VISION, _PROJECTOR = "language_model.", "vision_model.", "mlp1."


@dataclass(frozen=True, slots=True)
class PartSource:
    """A directory that a part comes from: an NVLM or InternVL checkpoint, or the part alone."""

    directory: Path
    shards: ShardSet
    config: dict[str, Any]

    @classmethod
    def open(cls, directory: Path) -> PartSource:
        """Read `config.json` and the headers of all shards."""
        return cls(directory, ShardSet(directory), read_json_object(directory / "config.json"))

    def section(self, name: str) -> dict[str, Any]:
        """The part's config: a section of a whole model's, or the file itself."""
        section = self.config.get(name, self.config)
        if not isinstance(section, dict):
            raise NvlmError(f"{self.directory / 'config.json'}: {name} must be a JSON object")
        return section

    def find(self, name: str, prefix: str) -> str | None:
        """The name of a tensor here, with or without the whole model's prefix."""
        candidates = (name, name.removeprefix(prefix))
        return next((candidate for candidate in candidates if candidate in self.shards.infos), None)


def assembled_config(
    language: PartSource, vision: PartSource, variant: Variant, cross_attention: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the `config.json` object of the new model, in the released style."""
    llm, vit = dict(language.section("llm_config")), dict(vision.section("vision_config"))
    qwen2 = llm.get("architectures") == ["Qwen2ForCausalLM"]
    # What Hugging Face's own configs leave to the class.
    llm = {"attention_bias": qwen2, "mlp_bias": False, "tie_word_embeddings": False, **llm}
    if "rope_theta" not in llm:
        llm["rope_theta"] = (llm.get("rope_parameters") or {}).get("rope_theta")
    name = f"NVLM_{variant}"
    config = {
        "architectures": [name],
        "model_type": name,
        "llm_config": llm,
        "vision_config": vit,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": vit.get("image_size"),
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
    }
    if cross_attention is not None:
        config["cross_attention_config"] = dict(cross_attention)
    return config


class PartReader:
    """Tensors of the new model by their released names: read from a part, or new.

    `new` collects the names of those that no part has.
    """

    def __init__(self, config: NvlmConfig, language: PartSource, vision: PartSource, seed: int) -> None:
        self._config, self._language, self._vision = config, language, vision
        self._generator = torch.Generator().manual_seed(seed)
        self.new: list[str] = []

    def read(self, tensor: ReleasedTensor) -> torch.Tensor:
        """Read or make one tensor with its shape on disk.

        Raises:
            NvlmError: a part lacks the tensor, or has another shape.
        """
        if tensor.name.startswith(_VISION):
            return self._vision_tensor(tensor)
        if tensor.name.startswith(_LANGUAGE) and "cross_attn" not in tensor.name:
            return self._part_tensor(self._language, tensor, _LANGUAGE, tensor.shape)
        if tensor.name.startswith(_PROJECTOR):
            kept = self._language.shards.infos.get(tensor.name)
            if kept is not None and kept.shape == tensor.shape:
                return self._language.shards.read(tensor.name)
        self.new.append(tensor.name)
        return self._new_tensor(tensor)

    def _part_tensor(
        self, source: PartSource, tensor: ReleasedTensor, prefix: str, *shapes: Shape
    ) -> torch.Tensor:
        name = source.find(tensor.name, prefix)
        if name is None:
            raise NvlmError(
                f"{source.directory} has no tensor {tensor.name}, with or without {prefix} before it",
                hint="give a checkpoint in the layout of nvidia/NVLM-D-72B, or that of the part alone",
            )
        if source.shards.info(name).shape not in shapes:
            raise NvlmError(
                f"{source.directory}: {name} has the shape {list(source.shards.info(name).shape)}, expected "
                + " or ".join(str(list(shape)) for shape in shapes)
            )
        return source.shards.read(name)

    def _vision_tensor(self, tensor: ReleasedTensor) -> torch.Tensor:
        """A tensor of the tower; towers without the released dummy heads get them."""
        width, padded = self._config.vision.hidden_size, self._config.vision.padded_hidden_size
        bare = _without_dummy_heads(tensor, width, padded)
        values = self._part_tensor(self._vision, tensor, _VISION, tensor.shape, bare)
        if tuple(values.shape) == tensor.shape:
            return values
        full = values.new_zeros(tensor.shape)
        if tensor.name.endswith("attn.qkv.weight"):
            full.view(3, padded, -1)[:, :width] = values.view(3, width, -1)
        else:
            full[..., :width] = values
        return full

    def _new_tensor(self, tensor: ReleasedTensor) -> torch.Tensor:
        """Normal with deviation 0.02; norms are one, biases and gates zero."""
        if tensor.name.endswith(("_gate", ".bias")):
            return torch.zeros(tensor.shape)
        if "norm" in tensor.name or tensor.name == "mlp1.0.weight":
            return torch.ones(tensor.shape)
        return torch.empty(tensor.shape).normal_(0, _DEVIATION, generator=self._generator)


def _without_dummy_heads(tensor: ReleasedTensor, width: int, padded: int) -> Shape:
    """The shape that a tower has without the seven zero heads of the released files."""
    if tensor.name.endswith("attn.qkv.weight"):
        return (3 * width, width)
    if tensor.name.endswith(("attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight")):
        return (*tensor.shape[:-1], width)
    return tensor.shape
