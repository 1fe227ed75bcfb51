"""The nodes that round activations, against the functions of the reference model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from nvlm_deploy.backends.onnxruntime.integer_passes import LowerStaticInt8
from nvlm_deploy.config.recipe import ActivationType
from nvlm_deploy.export.activations import QuantizedInputs
from nvlm_deploy.export.dialect import Dialect
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.quantization import Storage
from nvlm_deploy.quantization.formats import fake_quantize_fp8, fake_quantize_int8, fake_quantize_nvfp4

K = 64
QUANTIZERS = {"int8-static": fake_quantize_int8, "fp8": fake_quantize_fp8, "nvfp4": fake_quantize_nvfp4}
LARGEST = {"int8-static": 127.0, "fp8": 448.0, "nvfp4": 6 * 448.0}


def inputs(scale: float) -> np.ndarray:
    """Numbers of all magnitudes, ties of every grid, zeros, and more than the scale covers."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(1, 300, K)) * 10 ** rng.uniform(-4, 1, size=(1, 300, 1))
    ties = (np.arange(40 * K) - 20 * K).reshape(1, 40, K) * 0.125 * scale
    whole = np.concatenate([spread, ties, np.zeros((1, 2, K)), [[[1e4] * K]]], axis=1)
    return whole.astype(np.float32)


def graph(activations: ActivationType, scale: float, pre_quant_scale_K: np.ndarray | None) -> ir.Model:
    storage = Storage("fp8", activations=activations, algorithm="max")
    source = SimpleNamespace(
        plan=SimpleNamespace(storage=lambda name: storage),
        input_scale=lambda name: scale,
        pre_quant_scale=lambda name: pre_quant_scale_K,
    )
    builder = GraphBuilder("test", source, Dialect(21))  # type: ignore[arg-type]
    x = builder.input("x", ir.DataType.FLOAT, ["batch", "rows", K])
    rounded = QuantizedInputs(builder).quantized("linear.weight", x)
    builder.output(rounded, "y", ir.DataType.FLOAT, ["batch", "rows", K])
    return builder.model({})


def run(model: ir.Model, path: Path, x: np.ndarray) -> np.ndarray:
    ir.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("activations", QUANTIZERS)
@pytest.mark.parametrize("scaled", [False, True])
def test_rounding_is_the_reference_models(tmp_path: Path, activations: ActivationType, scaled: bool) -> None:
    scale = float(np.float32(3.7 / LARGEST[activations]))
    pre = np.random.default_rng(1).uniform(0.25, 4, K).astype(np.float32) if scaled else None
    x = inputs(scale)
    model = graph(activations, scale, pre)
    expected = QUANTIZERS[activations](
        torch.from_numpy(x if pre is None else x * pre), torch.tensor(scale)
    ).numpy()
    np.testing.assert_array_equal(run(model, tmp_path / "standard.onnx", x), expected)
    if activations == "int8-static":
        unsigned = LowerStaticInt8()(model).model
        np.testing.assert_array_equal(run(unsigned, tmp_path / "unsigned.onnx", x), expected)
