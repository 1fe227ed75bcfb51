"""Weight formats of NVIDIA ModelOpt's unified HF checkpoints: numerics and packed layouts.

A codec packs a matrix into the tensors that such a checkpoint holds, and unpacks them; the
`fake_quantize` functions do to activations what a runtime does with the checkpoint's `input_scale`.
"""

from nvlm_deploy.errors import NvlmError, did_you_mean
from nvlm_deploy.quantization.formats.codec import PackedWeight, WeightCodec
from nvlm_deploy.quantization.formats.fp8 import Fp8, fake_quantize_fp8
from nvlm_deploy.quantization.formats.integers import Int4, Int8, fake_quantize_int8, int4_codes
from nvlm_deploy.quantization.formats.nvfp4 import Nvfp4, fake_quantize_nvfp4
from nvlm_deploy.quantization.formats.w4a8 import W4A8

__all__ = [
    "W4A8",
    "Fp8",
    "Int4",
    "Int8",
    "Nvfp4",
    "PackedWeight",
    "WeightCodec",
    "fake_quantize_fp8",
    "fake_quantize_int8",
    "fake_quantize_nvfp4",
    "int4_codes",
    "weight_codec",
]


def weight_codec(name: str, group_size: int = 128) -> WeightCodec:
    """Return the codec called `name`; `group_size` is that of the formats with INT4 groups.

    Raises:
        NvlmError: there is no such format.
    """
    codecs: tuple[WeightCodec, ...] = (Fp8(), Int8(), Int4(group_size), W4A8(group_size), Nvfp4())
    by_name = {codec.name: codec for codec in codecs}
    if name not in by_name:
        raise NvlmError(f"there is no weight format '{name}'", hint=did_you_mean(name, by_name))
    return by_name[name]
