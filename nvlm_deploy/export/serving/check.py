"""A directory held against what a server reads: config, quantization, every tensor's name, dtype, shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nvlm_deploy.checkpoint.safetensors_file import DTYPE_NAMES, RELEASED_DTYPES
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.config.strict_json import read_json_object
from nvlm_deploy.errors import NvlmError, VerificationError
from nvlm_deploy.export.serving.expected import Shape, expected
from nvlm_deploy.export.serving.loaders import (
    FUSED,
    PRE_QUANT_SCALE,
    SHARED_SCALES,
    TENSORS,
    WITH_PRE_QUANT_SCALE,
    Layout,
    Loader,
)
from nvlm_deploy.export.serving.quantization import MIXED, Understanding, disagreements, read_quantization
from nvlm_deploy.quantization.checkpoint import open_weights

_IMAGE_TOKEN = "<|vision_pad|>"
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """What a server would stumble over. `error`: it does not load, or answers differently."""

    severity: Literal["error", "warning"]
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class ServingReport:
    """All findings of one directory, and how many tensors were held against the loader's."""

    directory: Path
    loader: str
    tensors: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that are no warnings."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "directory": str(self.directory),
            "loader": self.loader,
            "tensors": self.tensors,
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def require_ok(self) -> None:
        """Raise if the server would stumble.

        Raises:
            VerificationError: names the first findings.
        """
        if self.errors:
            lines = "".join(f"\n  - {finding.where}: {finding.text}" for finding in self.errors[:_SHOWN])
            more = len(self.errors) - _SHOWN
            raise VerificationError(
                f"{self.loader} cannot serve {self.directory}: {len(self.errors)} findings{lines}"
                + (f"\n  - and {more} more" if more > 0 else ""),
                hint="docs/serving/README.md says which recipes and formats each server takes",
            )


def check_directory(directory: Path, loader: Loader) -> ServingReport:
    """Hold a checkpoint against `loader`; weights are not read, scales that must be the same are.

    Raises:
        NvlmError: config.json or the shards cannot be read at all.
    """
    config = read_json_object(directory / "config.json")
    findings = [*_check_model(config, loader, directory)]
    if any(finding.severity == "error" for finding in findings if finding.where == "architectures"):
        return ServingReport(directory, loader.title, 0, tuple(findings))
    quantization = read_quantization(directory)
    understood = Understanding(loader, quantization)
    findings += [Finding("error", "quantization", text) for text in disagreements(quantization, config)]
    findings += _check_algorithms(quantization, loader)
    if any(finding.where == "quant_algo" for finding in findings):
        return ServingReport(directory, loader.title, 0, tuple(findings))
    shards = ShardSet(directory)
    shapes = expected(config, loader, str(directory / "config.json"))
    layouts = _layouts(shapes, understood, shards)
    findings += [*_check_tensors(layouts, shards), *_check_fused(shapes, understood, shards)]
    return ServingReport(directory, loader.title, len(layouts), tuple(findings))


def check_unified(directory: Path) -> ServingReport:
    """Hold a checkpoint against this project's own reader, and its two quantization configs together.

    Raises:
        NvlmError: config.json cannot be read at all.
    """
    texts = list(disagreements(read_quantization(directory), read_json_object(directory / "config.json")))
    findings = [Finding("error", "quantization", text) for text in texts]
    count = 0
    try:
        count = len(open_weights(directory).reader.names())
    except NvlmError as error:
        findings.append(Finding("error", "tensors", error.message))
    return ServingReport(directory, "the unified layout", count, tuple(findings))


def _check_model(config: Mapping[str, Any], loader: Loader, directory: Path) -> Iterator[Finding]:
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in loader.models:
        text = f"{loader.title} has no class for {architecture}; it has {' and '.join(loader.models)}"
        yield Finding("error", "architectures", text)
        return
    language = config.get("llm_config", {}) if loader.scope == "whole" else config
    scaling = language.get("rope_scaling") or {}
    if scaling.get("type", scaling.get("rope_type")) == "dynamic":
        text = (
            f"{json.dumps(scaling)}: the server scales all positions, and the model was trained without; "
            "nvlm-build export writes null"
        )
        yield Finding("error", "rope_scaling", text)
    if loader.scope == "whole" and config.get("model_type") != "NVLM_D":
        yield Finding("error", "model_type", f"{config.get('model_type')!r}, not 'NVLM_D'")
    if loader.scope == "decoder" and config.get("model_type") != _model_type(architecture):
        yield Finding(
            "error", "model_type", f"{config.get('model_type')!r}, not {_model_type(architecture)!r}"
        )
    if language.get("top_p") == 0:
        yield Finding("warning", "top_p", "0 is outside (0, 1]; nvlm-build export leaves it out")
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.exists():
        yield Finding("error", "tokenizer.json", "is missing")
    elif loader.scope == "whole" and _IMAGE_TOKEN not in tokenizer.read_text(encoding="utf-8"):
        yield Finding("error", "tokenizer.json", f"has no {_IMAGE_TOKEN}, which stands for an image's tokens")


def _model_type(architecture: str) -> str:
    return {"Qwen2ForCausalLM": "qwen2"}.get(architecture, "llama")


def _check_algorithms(quantization: Mapping[str, Any] | None, loader: Loader) -> Iterator[Finding]:
    if quantization is None:
        return
    used = {str(quantization["quant_algo"])}
    if used == {MIXED}:
        if not loader.mixed:
            yield Finding(
                "error", "quant_algo", f"{loader.title} takes one algorithm for all layers, not {MIXED}"
            )
        layers = quantization.get("quantized_layers") or {}
        used = {str(entry.get("quant_algo")) for entry in layers.values()}
        if not layers:
            yield Finding("error", "quant_algo", f"{MIXED} without quantized_layers")
    for name in sorted(used - set(loader.algorithms)):
        yield Finding(
            "error", "quant_algo", f"{name} is not read by {loader.title}: {', '.join(loader.algorithms)}"
        )


def _layouts(shapes: Mapping[str, Shape], understood: Understanding, shards: ShardSet) -> dict[str, Any]:
    """Possible dtypes, and the shape, of every tensor that is looked for, by its name."""
    found: dict[str, tuple[tuple[torch.dtype, ...], Shape]] = {}
    for name, shape in shapes.items():
        module, _, suffix = name.rpartition(".")
        matrix = suffix == "weight" and len(shape) == 2 and "embed" not in name
        form = understood.format_of(module) if matrix else None
        if form is None:
            found[name] = (RELEASED_DTYPES, shape)
            continue
        algorithm, group = form
        layout: Layout = TENSORS[algorithm]
        if algorithm in WITH_PRE_QUANT_SCALE and f"{module}.pre_quant_scale" in shards.infos:
            layout = {**layout, **PRE_QUANT_SCALE}
        sizes = _sizes(shape, group)
        for part, (dtype, symbols) in layout.items():
            found[f"{module}.{part}"] = ((dtype,), tuple(sizes[symbol] for symbol in symbols))
    if understood.fp8_cache:
        for name in [name for name in shapes if name.endswith(("k_proj.weight", "v_proj.weight"))]:
            stem, kind = name.removesuffix("weight"), name.split(".")[-2][0]
            found[f"{stem}{kind}_scale"] = ((torch.float32,), ())
    return found


def _sizes(shape: Shape, group: int) -> dict[str, int]:
    rows, columns = shape
    by_group = columns // group if group else columns
    return {
        "N": rows,
        "K": columns,
        "N/2": rows // 2,
        "K/2": columns // 2,
        "K/16": columns // 16,
        "K/G": by_group,
    }


def _check_tensors(layouts: Mapping[str, Any], shards: ShardSet) -> Iterator[Finding]:
    for name, (dtypes, shape) in layouts.items():
        info = shards.infos.get(name)
        if info is None:
            yield Finding("error", name, "is missing")
            continue
        if info.dtype not in dtypes:
            wanted = " or ".join(DTYPE_NAMES[dtype] for dtype in dtypes)
            yield Finding("error", name, f"is {DTYPE_NAMES[info.dtype]}, and the server expects {wanted}")
        if tuple(info.shape) != shape:
            yield Finding(
                "error", name, f"has the shape {list(info.shape)}, and the server expects {list(shape)}"
            )
    for name in sorted(set(shards.infos) - set(layouts)):
        yield Finding("error", name, "is a tensor that the server has no parameter for")


def _check_fused(
    shapes: Mapping[str, Shape], understood: Understanding, shards: ShardSet
) -> Iterator[Finding]:
    for first, *others in FUSED:
        for name in [name for name in shapes if name.endswith(f".{first}.weight")]:
            stem = name.removesuffix(f"{first}.weight")
            parts = [f"{stem}{part}" for part in (first, *others)]
            forms = {understood.format_of(part) for part in parts}
            if len(forms) > 1:
                shown = ", ".join(sorted("floats" if form is None else form[0] for form in forms))
                yield Finding(
                    "error", parts[0], f"is fused with {' and '.join(others)}, and they are {shown}"
                )
                continue
            (form,) = forms
            for scale in SHARED_SCALES.get(form[0], ()) if form else ():
                yield from _check_shared([f"{part}.{scale}" for part in parts], shards)


def _check_shared(names: list[str], shards: ShardSet) -> Iterator[Finding]:
    scalars = [name for name in names if name in shards.infos and shards.infos[name].num_elements == 1]
    values = {float(shards.read(name)) for name in scalars}
    if len(values) > 1:
        others = ", ".join(name.split(".")[-2] for name in names[1:])
        yield Finding("error", names[0], f"is not that of {others}, with which it is fused: {sorted(values)}")
