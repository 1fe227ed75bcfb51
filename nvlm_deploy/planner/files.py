"""Sizes of a bundle's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Backend
from nvlm_deploy.planner.storage import engine_bytes, rotary_bytes
from nvlm_deploy.quantization.plan import LM_HEAD, QuantizationPlan, TensorPlan

# Tensors of a page and more begin on a page of the graph's data file, others on a cache line; those of less
# than `_EXTERNAL` are in the graph's own file.
_PAGE = 4096
_CACHE_LINE = 64
_EXTERNAL = 1024
_FLOAT32 = 4
# Nodes of a layer in the graph's own file, as this project's graphs have them.
_VISION_LAYER = 11_000
_DECODER_LAYER = 7_000
# tokenizer.json of Qwen2 has 46 bytes for a token and its merge, and the configs have 6 kB. The manifest,
# which lists the files, is not among them.
_TOKEN_BYTES = 46
_SMALL_FILES = 6_000


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Bytes below `vision/` (tower and projector), below `llm/`, and of all other files."""

    vision: int
    llm: int
    other: int

    @property
    def total(self) -> int:
        return self.vision + self.llm + self.other

    def to_dict(self) -> dict[str, int]:
        return {"vision": self.vision, "llm": self.llm, "other": self.other, "total": self.total}


def bundle_files(
    plan: QuantizationPlan, config: NvlmConfig, backend: Backend, context: int, tokenizer: int | None = None
) -> FileBytes:
    """Predict the files of one bundle, engines of all ranks counted once.

    tokenizer: bytes of the checkpoint's tokenizer.json; None: not known, and estimated.
    """
    estimated = config.language.vocab_size * _TOKEN_BYTES
    other = _SMALL_FILES + (estimated if tokenizer is None else tokenizer)
    if backend != "onnxruntime":
        engine = engine_bytes(plan, backend)
        llm = engine.language + rotary_bytes(config, context)
        return FileBytes(engine.vision + engine.projector, llm, other)
    tables = rotary_bytes(config, context) // 2
    pieces: dict[str, list[int]] = {"vision": [], "llm": [tables, tables]}
    for part, size in _pieces(adapt(plan)):
        pieces[part].append(size)
    return FileBytes(
        _data_file(pieces["vision"]) + config.vision.num_layers * _VISION_LAYER,
        _data_file(pieces["llm"]) + config.language.num_layers * _DECODER_LAYER,
        other,
    )


def _data_file(sizes: list[int]) -> int:
    """Bytes of tensors that are written one behind the other, with the gaps between them."""
    end = inside = 0
    for size in sizes:
        if size < _EXTERNAL:
            inside += size
            continue
        boundary = _PAGE if size >= _PAGE else _CACHE_LINE
        end = -(-end // boundary) * boundary + size
    return end + inside


def _pieces(plan: QuantizationPlan) -> Iterator[tuple[str, int]]:
    """Graph and bytes of every tensor that is written: codes and scales apart, the decoder's qkv as one."""
    fused: dict[str, int] = {}
    # Graphs name the small tensors first.
    for tensor in sorted(plan.tensors.values(), key=lambda each: each.matrix):
        if tensor.name == LM_HEAD and plan.shares_embedding:
            continue
        part = "vision" if tensor.part in ("vision", "projector") else "llm"
        for kind, size in _codes_and_scales(tensor):
            layer, found, rest = tensor.name.partition(".attention.")
            if part == "vision" or not found or not rest.startswith(("q_", "k_", "v_")):
                yield part, size
                continue
            key = f"{layer}.{rest.partition('.')[2]}.{kind}"
            fused[key] = fused.get(key, 0) + size
            if rest.startswith("v_"):
                yield part, fused.pop(key)


def _codes_and_scales(tensor: TensorPlan) -> Iterator[tuple[str, int]]:
    whole, storage = tensor.storage.nbytes(tensor.shape), tensor.storage
    if not tensor.matrix or not storage.quantized:
        yield "values", whole
        return
    rows, columns = tensor.shape
    width = storage.groups(columns) * storage.group_size if storage.group_size else columns
    codes = rows * width * storage.bits // 8
    yield "codes", codes
    # One FP8 scale of a matrix is written once a row.
    yield "scales", rows * _FLOAT32 if storage.format == "fp8" else whole - codes
