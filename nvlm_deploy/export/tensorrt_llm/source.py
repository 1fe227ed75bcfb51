"""The language model of a checkpoint, as the table reads it, and the layout that its formats ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig, NvlmConfig
from nvlm_deploy.config.suitability import check_cross_caches
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.export.tensorrt_llm.matrices import Fused, matrices_of
from nvlm_deploy.export.tensorrt_llm.padding import padded_intermediate
from nvlm_deploy.export.tensorrt_llm.parallel import Parallel
from nvlm_deploy.export.tensorrt_llm.releases import Release
from nvlm_deploy.export.tensorrt_llm.schemes import Form, scheme_of
from nvlm_deploy.export.tensorrt_llm.table import EMBEDDING, LM_HEAD, Layout
from nvlm_deploy.quantization.checkpoint import QuantizedReader, open_weights
from nvlm_deploy.quantization.plan import Storage

Forms = Mapping[str, Form]


@dataclass(frozen=True, slots=True)
class LanguageSource:
    """Released names of the language model with the suffixes of the unified checkpoint."""

    shards: ShardSet
    config: NvlmConfig
    storages: Mapping[str, Storage]
    fp8_cache: bool

    @classmethod
    def open(cls, directory: Path) -> LanguageSource:
        """Open a checkpoint, quantized or as released, that is checked as a whole.

        Raises:
            NvlmError: it is not in order.
        """
        reader = open_weights(directory).reader
        storages: Mapping[str, Storage] = {}
        fp8_cache = False
        if isinstance(reader, QuantizedReader):
            storages, fp8_cache = reader.storages, reader.quant_config.fp8_kv_cache
        return cls(reader.shards, reader.config, storages, fp8_cache)

    @property
    def language(self) -> LanguageConfig:
        return self.config.language

    @property
    def cross(self) -> CrossAttentionConfig | None:
        """Cross-attention of NVLM-X and NVLM-H."""
        return self.config.cross_attention

    def names(self) -> tuple[str, ...]:
        """All tensors of the checkpoint, `lm_head` among them if the model ties it to the embedding."""
        tied = (LM_HEAD,) if self.language.tie_word_embeddings else ()
        return (*self.shards.infos, *tied)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor in the dtype on disk."""
        return self.shards.read(self._on_disk(name))

    def empty(self, name: str) -> torch.Tensor:
        """Return a tensor without memory, of its dtype and shape."""
        info = self.shards.info(self._on_disk(name))
        return torch.empty(info.shape, dtype=info.dtype, device="meta")

    def _on_disk(self, name: str) -> str:
        return EMBEDDING if name == LM_HEAD and self.language.tie_word_embeddings else name

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.shards.infos


def plan_layout(
    source: LanguageSource, release: Release, parallel: Parallel, split_embedding: bool
) -> Layout:
    """Find the form of every matrix and the padded width, and check that `release` can load the result.

    Raises:
        UsageError: heads or layers cannot be divided so.
        UnsuitableError: the release has no such format, has one GPU only, or a matrix cannot be divided.
    """
    parallel.check(source.language, source.cross)
    if source.cross is not None and not release.cross_attention:
        raise UnsuitableError(
            f"this is an NVLM-{source.config.variant}, and TensorRT-LLM {release.name} has no decoder with "
            "cross-attention",
            hint="--version 1.2 has one; on a Jetson, onnxruntime makes engines of it: --target cpu-arm64",
        )
    check_cross_caches(source.config, source.fp8_cache)
    if parallel.world_size > 1 and not release.several_gpus:
        raise UnsuitableError(
            f"TensorRT-LLM {release.name} is built for one GPU, not for {parallel.world_size}",
            hint="leave --tp and --pp at 1, or name another --version",
        )
    if LM_HEAD in source.storages:
        raise UnsuitableError(
            f"lm_head is {source.storages[LM_HEAD].format}, and an exported checkpoint keeps it in 16 bits",
            hint="quantize with --set weights.lm_head.format=fp16",
        )
    if source.fp8_cache and not release.fp8:
        raise UnsuitableError(
            f"TensorRT-LLM {release.name} has no FP8 cache", hint="quantize with --set kv_cache=fp16"
        )
    forms = tuple(_forms(source, layer, release) for layer in range(source.language.num_layers))
    forms = _with_prequant(forms)
    inner = [form for layer in forms for name, form in layer.items() if "mlp." in name]
    width = padded_intermediate(source.language.intermediate_size, inner, parallel.tp)
    layout = Layout(source.language, parallel, forms, width, split_embedding, source.fp8_cache, source.cross)
    for layer in range(source.language.num_layers):
        check_divisible(layout, layer, release)
    return layout


def _forms(source: LanguageSource, layer: int, release: Release) -> Forms:
    forms = {}
    for fused in matrices_of(source.cross, layer):
        names = [f"language_model.model.layers.{layer}.{part}" for part in fused.sources]
        storages = [source.storages.get(f"{name}.weight") for name in names]
        if any(storage != storages[0] for storage in storages):
            raise UnsuitableError(
                f"{' and '.join(names)} are stored differently, and TensorRT-LLM makes one matrix of them",
                hint="let one rule of the recipe match them all",
            )
        scheme = scheme_of(storages[0], names[0])
        if scheme.algorithm is not None:
            release.check_algorithm(scheme.algorithm)
        size = storages[0].group_size if storages[0] and scheme.group_sizes else 0
        found = source.has(f"{names[0]}.pre_quant_scale")
        forms[fused.name] = Form(scheme, size, "source" if found else "none")
    return forms


def _with_prequant(forms: tuple[Forms, ...]) -> tuple[Forms, ...]:
    """Give ones to matrices without a factor of their inputs where the format wants one for all of them."""
    scaled = {
        form.scheme.algorithm for layer in forms for form in layer.values() if form.prequant == "source"
    }

    def complete(form: Form) -> Form:
        wanted = form.scheme.prequant or form.scheme.algorithm in scaled
        return replace(form, prequant="ones") if wanted and form.prequant == "none" else form

    return tuple({name: complete(form) for name, form in layer.items()} for layer in forms)


def check_divisible(layout: Layout, layer: int, release: Release) -> None:
    """Check that kernels and loader of `release` take the matrices of a layer as they are on one GPU.

    The padded width fits by construction; nothing else can be padded: heads are what they are.

    Raises:
        UnsuitableError: names the matrix and what does not divide it.
    """
    for fused in layout.matrices(layer):
        form = layout.forms[layer][fused.name]
        sizes = layout.local_sizes(fused)
        for kind, size, multiple in zip(("outputs", "inputs"), sizes, form.multiples, strict=True):
            if size % multiple:
                raise _indivisible(fused, form, f"{size:,} {kind}", multiple, layout.parallel.tp)
        groups = sizes[1] // form.group_size if form.group_size else 0
        if release.tall_scales and sizes[0] <= groups:
            raise UnsuitableError(
                f"TensorRT-LLM {release.name} takes the scales of {fused.name} for transposed: "
                f"{groups:,} groups for {sizes[0]:,} outputs",
                hint="quantize in larger groups",
            )


def _indivisible(fused: Fused, form: Form, size: str, multiple: int, tp: int) -> UnsuitableError:
    smaller = ["a smaller --tp"] if tp > 1 else []
    smaller += ["smaller groups"] if multiple == form.group_size else []
    ways = [f"use {' or '.join(smaller)}"] if smaller else ["keep it in 16 bits: a 'keep' rule of the recipe"]
    per_gpu = f" on each of {tp} GPUs" if tp > 1 else ""
    return UnsuitableError(
        f"{fused.name} has {size}{per_gpu}, and {form.scheme.algorithm} needs multiples of {multiple}",
        hint="; ".join([*ways, "zeros can only widen the inside of the MLPs"]),
    )
