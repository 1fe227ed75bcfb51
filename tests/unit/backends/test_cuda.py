"""The CUDA path as far as it runs without a GPU: the same graphs, buffers and checks, on the CPU provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nvlm_deploy.backends.onnxruntime import cuda
from nvlm_deploy.backends.onnxruntime.cuda_graph import cuda_graph
from nvlm_deploy.backends.onnxruntime.library import parse_device, placement
from nvlm_deploy.backends.onnxruntime.session import OrtDecoderSession
from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.errors import UnsuitableError, UsageError

CPU = SessionOptions(threads=1, prefill_chunk=5)


@pytest.fixture(scope="module")
def bundle(build: Callable[..., Path]) -> Path:
    return build(format="int4", group_size=32, activations="int8")


@pytest.fixture(scope="module")
def sessions(bundle: Path) -> tuple[OrtDecoderSession, OrtDecoderSession]:
    """The decoder as it is, and as the CUDA provider gets it."""
    path = bundle / "llm" / "decoder.onnx"
    return OrtDecoderSession(path, CPU), OrtDecoderSession(path, CPU, cuda_graph(path))


def steps(session: OrtDecoderSession) -> list[np.ndarray]:
    """Logits of two rows: prompts of other lengths, in pieces, and three more tokens."""
    rng = np.random.default_rng(5)
    cache = session.new_cache(2, 24)
    ids, lengths = rng.integers(0, 250, (2, 13)), np.array([13, 8], np.int32)
    logits = [session.run(ids, lengths, cache)]
    for _ in range(3):
        logits.append(session.run(rng.integers(0, 250, (2, 1)), np.ones(2, np.int32), cache))
    assert cache.lengths.tolist() == [16, 11]
    return logits


def test_attention_in_fp16_gives_the_same_logits(build: Callable[..., Path]) -> None:
    # INT8 activations round on, and would hide what FP16 attention adds.
    path = build(format="fp16") / "llm" / "decoder.onnx"
    whole, half = (steps(OrtDecoderSession(path, CPU, graph)) for graph in (None, cuda_graph(path)))
    for expected, found in zip(whole, half, strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3 * float(expected.std()))
        assert (found != expected).any()


def test_the_cache_is_half_as_large_and_updated_in_place(
    sessions: tuple[OrtDecoderSession, OrtDecoderSession],
) -> None:
    whole, half = (session.new_cache(2, 8) for session in sessions)
    one, other = whole.buffers["key.0"], half.buffers["key.0"]
    assert (one.dtype, other.dtype) == (np.float32, np.float16)
    assert one.shape == other.shape
    session = sessions[1]
    session.run(np.array([[1, 2], [3, 4]]), np.array([2, 2], np.int32), half)
    stored = other.owner.numpy()
    assert (stored[:, :, :2] != 0).any(axis=(1, 2, 3)).all()
    assert (stored[:, :, 2:] == 0).all()
    row = half.row(1).buffers["key.0"]
    assert row.pointer - other.pointer == stored[0].nbytes
    assert half.row(1).lengths.tolist() == [2]


def test_the_session_speaks_of_the_bundle_and_not_of_its_device(
    sessions: tuple[OrtDecoderSession, OrtDecoderSession],
) -> None:
    whole, half = sessions
    assert half.facts == whole.facts
    assert half.facts.inputs["past_key.0"]["dtype"] == "float32"


def test_nothing_but_attention_is_in_another_type(bundle: Path) -> None:
    path = bundle / "llm" / "decoder.onnx"
    before, after = onnx.load(str(path), load_external_data=False), onnx.load_from_string(cuda_graph(path))
    kept = [node for node in after.graph.node if not node.name.endswith(".fp16/Cast")]
    names = {node.name for node in before.graph.node}
    added = [node for node in after.graph.node if node.name not in names]
    assert {node.op_type for node in added} == {"Cast"}
    layers = sum(node.op_type == "GroupQueryAttention" for node in before.graph.node)
    # Packed queries, cosines and sines before, and the result behind.
    assert len(added) == 4 * layers
    assert len(kept) >= len(before.graph.node)


def test_graphs_with_integer_products_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "llm" / "decoder.onnx"), load_external_data=False)
    node = onnx.helper.make_node("MatMulIntegerToFloat", ["a", "b", "c", "d"], ["e"], domain="com.microsoft")
    model.graph.node.append(node)
    (tmp_path / "decoder.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsuitableError, match="on the CPU only: MatMulIntegerToFloat"):
        cuda_graph(tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    "form", [{"format": "fp16"}, {"format": "fp32"}, {"format": "int8", "group_size": 32}]
)
def test_every_operator_of_other_formats_has_a_kernel(
    build: Callable[..., Path], form: dict[str, object]
) -> None:
    bundle = build(**form)
    for path in (bundle / "llm" / "decoder.onnx", bundle / "vision" / "vision.onnx"):
        assert cuda_graph(path)


def test_nodes_on_the_cpu_are_found_by_the_sessions_own_account(bundle: Path) -> None:
    path = bundle / "vision" / "vision.onnx"
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    placed = placement(ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]))
    with pytest.raises(UnsuitableError, match=r"placed \d+ nodes on the CPU .*MatMulNBits"):
        cuda.check_placement(placed, path)
    on_gpu = [(cuda.PROVIDER, op, name) for _, op, name in placed]
    cuda.check_placement([*on_gpu, ("CPUExecutionProvider", "Shape", "shape")], path)


@pytest.mark.skipif(cuda.PROVIDER in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_a_build_for_the_cpu_is_named(bundle: Path) -> None:
    with pytest.raises(
        UnsuitableError, match="has no CUDAExecutionProvider: it is a build for the CPU"
    ) as caught:
        OrtDecoderSession(bundle / "llm" / "decoder.onnx", SessionOptions(device="cuda:1"))
    assert "onnxruntime-gpu" in (caught.value.hint or "")


def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    assert cuda.missing_library(library) == "libonnxruntime_providers_cuda.so is not installed"
    library.write_bytes(b"no library")
    assert str(library) in cuda.missing_library(library)


@pytest.mark.parametrize(
    ("text", "expected"), [("cpu", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:3", ("cuda", 3))]
)
def test_devices_are_parsed(text: str, expected: tuple[str, int]) -> None:
    assert parse_device(text) == expected


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="there is no device"):
        parse_device(text)


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu(
    sessions: tuple[OrtDecoderSession, OrtDecoderSession], bundle: Path
) -> None:
    device = SessionOptions(device="cuda", prefill_chunk=5)
    on_gpu = steps(OrtDecoderSession(bundle / "llm" / "decoder.onnx", device))
    for expected, found in zip(steps(sessions[0]), on_gpu, strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-2 * float(expected.std()))
