"""How TensorRT-LLM stores the matrices of each format: the tensors, their axes, and what must divide them.

Source of names, dtypes and shapes: `preprocess_perlayer_weights` and the parameters of
`quantization/layers.py` in TensorRT-LLM, and `export_tensorrt_llm_checkpoint` of ModelOpt 0.47.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from nvlm_deploy.config.recipe import NVFP4_GROUP
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization.plan import Storage

# Where the factor of a matrix's inputs comes from: nowhere, the checkpoint, or ones, because the
# release wants a factor for every matrix and the checkpoint's is in a norm.
PreQuant = Literal["none", "source", "ones"]
PREQUANT_SUFFIX = "prequant_scaling_factor"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a matrix; `source` and `target` are suffixes.

    out, inp: how many output and input features share a number along the tensor's axes, rows first; None
    where it has no such axis. fill: what stands for features that are padding. view: dtypes between which
    the bytes are reinterpreted.
    """

    source: str
    target: str
    out: int | None = None
    inp: int | None = None
    fill: float = 0.0
    view: tuple[torch.dtype, torch.dtype] | None = None

    @property
    def scalar(self) -> bool:
        """Whether it is one number for the whole matrix."""
        return self.out is None and self.inp is None


@dataclass(frozen=True, slots=True)
class Scheme:
    """One format of weights. `algorithm` is TensorRT-LLM's name, None for 16 bits.

    out_multiple, inp_multiple: what the features of a matrix on one GPU must be multiples of, beside the
    groups. group_sizes: those that there are kernels for. prequant: whether each matrix must have a factor
    for its inputs.
    """

    algorithm: str | None
    storage: Storage
    tensors: tuple[StoredTensor, ...]
    out_multiple: int = 1
    inp_multiple: int = 1
    group_sizes: tuple[int, ...] = ()
    prequant: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """How one matrix of the checkpoint is stored."""

    scheme: Scheme
    group_size: int = 0
    prequant: PreQuant = "none"

    @property
    def multiples(self) -> tuple[int, int]:
        """What output and input features on one GPU must be multiples of."""
        return self.scheme.out_multiple, max(self.scheme.inp_multiple, self.group_size)

    @property
    def storage(self) -> Storage:
        """Storage in the terms of the quantizer."""
        return replace(self.scheme.storage, group_size=self.group_size)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors beside a factor of the inputs; groups have their size."""
        return tuple(
            replace(tensor, inp=self.group_size) if tensor.inp == _PER_GROUP else tensor
            for tensor in self.scheme.tensors
        )


# Stands for the group size in the table below.
_PER_GROUP = 0
_WEIGHT = StoredTensor("weight", "weight", 1, 1)
_INPUT_SCALE = StoredTensor("input_scale", "activation_scaling_factor")
_SCALE_2 = StoredTensor("weight_scale_2", "weights_scaling_factor_2")
# Two rows in a byte. The loader knows packed INT4 by this dtype.
_INT4_WEIGHT = StoredTensor("weight", "weight", 2, 1, view=(torch.uint8, torch.int8))
# The kernels multiply codes of zero with it, and W4A8 divides it by weights_scaling_factor_2: a one would
# overflow there.
_INT4_SCALE = StoredTensor("weight_scale", "weights_scaling_factor", 1, _PER_GROUP)

FLOAT = Scheme(None, Storage("fp16"), (_WEIGHT,))
SCHEMES = (
    Scheme(
        "FP8",
        Storage("fp8", activations="fp8", algorithm="max"),
        (_WEIGHT, StoredTensor("weight_scale", "weights_scaling_factor"), _INPUT_SCALE),
        out_multiple=16,
        inp_multiple=16,
    ),
    Scheme(
        "W4A16_AWQ",
        Storage("int4", 128, activations="int8", algorithm="max"),
        (_INT4_WEIGHT, _INT4_SCALE),
        out_multiple=64,
        group_sizes=(64, 128),
    ),
    Scheme(
        "W4A8_AWQ",
        Storage("int4", 128, activations="fp8", algorithm="max"),
        (_INT4_WEIGHT, _INT4_SCALE, _SCALE_2, _INPUT_SCALE),
        out_multiple=64,
        group_sizes=(128,),
        prequant=True,
    ),
    Scheme(
        "W8A8_SQ_PER_CHANNEL",
        Storage("int8", activations="int8-static", algorithm="max"),
        # TensorRT dequantizes these itself, and takes only scales above zero.
        (_WEIGHT, StoredTensor("weight_scale", "weights_scaling_factor", 1, None, fill=1.0), _INPUT_SCALE),
        prequant=True,
    ),
    Scheme(
        "NVFP4",
        Storage("nvfp4", NVFP4_GROUP, activations="nvfp4", algorithm="max"),
        (
            StoredTensor("weight", "weight", 1, 2),
            StoredTensor("weight_scale", "weights_scaling_factor", 1, _PER_GROUP, fill=1.0),
            _SCALE_2,
            _INPUT_SCALE,
        ),
        # The loader interleaves scales in blocks of 128 x 4 and expects no padding from that.
        out_multiple=128,
        inp_multiple=4 * NVFP4_GROUP,
        group_sizes=(NVFP4_GROUP,),
    ),
)
PREQUANT = StoredTensor("pre_quant_scale", PREQUANT_SUFFIX, None, 1, fill=1.0)
_BY_STORAGE = {(scheme.storage.format, scheme.storage.activations): scheme for scheme in SCHEMES}
_WEIGHT_ONLY_INT8 = (
    "TensorRT-LLM makes INT8 weights itself when it loads 16-bit ones, with other scales (largest / 128), "
    "and its own packed form belongs to one GPU architecture"
)


def scheme_of(storage: Storage | None, name: str) -> Scheme:
    """Return the scheme of a matrix called `name`; `storage` None is 16 bits.

    Raises:
        UnsuitableError: TensorRT-LLM has no such weights, or no kernels for the group size.
    """
    if storage is None or not storage.quantized:
        return FLOAT
    scheme = _BY_STORAGE.get((storage.format, storage.activations))
    if scheme is None:
        why = _WEIGHT_ONLY_INT8 if storage.format == "int8" else "it has no such engines"
        raise UnsuitableError(
            f"{name} is {storage.format} with activations of {storage.activations}, which a TensorRT-LLM "
            f"checkpoint cannot carry: {why}",
            hint="recipes for it: fp8, nvfp4, int8-sq, int4-awq, int4-gptq, w4a8-awq",
        )
    if scheme.group_sizes and storage.group_size not in scheme.group_sizes:
        sizes = " or ".join(map(str, scheme.group_sizes))
        raise UnsuitableError(
            f"{name} has groups of {storage.group_size}, and TensorRT-LLM's {scheme.algorithm} has kernels "
            f"for groups of {sizes}",
            hint=f"quantize with --set weights.language.group_size={scheme.group_sizes[-1]}",
        )
    return scheme


def scheme_named(algorithm: str | None) -> Scheme | None:
    """Return the scheme with TensorRT-LLM's name for it, or None if there is none."""
    return next((scheme for scheme in (FLOAT, *SCHEMES) if scheme.algorithm == algorithm), None)
