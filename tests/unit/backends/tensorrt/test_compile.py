"""Plans are compiled in another process, whose failures become sentences; sessions need a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from nvlm_deploy.backends import SessionOptions, open_decoder_session, open_vision_session
from nvlm_deploy.backends.tensorrt.compile import CompileJob, CompileResult, compile_graph
from nvlm_deploy.backends.tensorrt.profiles import Profile
from nvlm_deploy.errors import NvlmError, UnsuitableError

trt = pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")

FREE: Profile = {"x": ((1, 8), (4, 8), (16, 8))}


def job(tmp_path: Path, op_type: str = "Erf", sm: int = 89, **changes: object) -> CompileJob:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape(["n", 8]))
    node = ir.node(op_type, [x], name="node")
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    ir.save(ir.Model(graph, ir_version=9), tmp_path / "g.onnx")
    paths = {"graph": str(tmp_path / "g.onnx"), "plan": str(tmp_path / "g.plan")}
    return CompileJob(library="tensorrt_rtx", sm=sm, profiles=(FREE,), **{**paths, **changes})  # type: ignore[arg-type]


def test_a_plan_and_what_it_took(tmp_path: Path) -> None:
    result = compile_graph(job(tmp_path))
    assert isinstance(result, CompileResult)
    assert (tmp_path / "g.plan").stat().st_size == result.bytes > 0
    assert result.peak_bytes > result.bytes
    assert 0 < result.seconds < 60
    assert result.version == trt.__version__
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx", "g.plan"]


def test_a_graph_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match=r"tensorrt_rtx did not compile g\.onnx: .*BitShift") as caught:
        compile_graph(job(tmp_path, op_type="BitShift"))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "g.plan").exists()


def test_a_gpu_that_is_refused(tmp_path: Path) -> None:
    """Asked for all the same, the library would end its process."""
    with pytest.raises(UnsuitableError, match="no compute capability SM90"):
        compile_graph(job(tmp_path, sm=90))


def test_a_process_that_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    died = subprocess.CompletedProcess([], -11, stdout="", stderr="bad optional access\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: died)
    with pytest.raises(NvlmError, match="ended its process with signal 11: bad optional access"):
        compile_graph(job(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("open_session", [open_vision_session, open_decoder_session])
def test_plans_are_not_opened_without_a_gpu(tmp_path: Path, open_session: object) -> None:
    (tmp_path / "p.plan").write_bytes(b"plan")
    with pytest.raises(UnsuitableError, match="TensorRT engines run on GPUs alone") as caught:
        open_session("tensorrt_rtx", tmp_path / "p.plan", SessionOptions())  # type: ignore[operator]
    assert caught.value.exit_code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tensorrt_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(UnsuitableError, match="TensorRT cannot be used here"):
        compile_graph(CompileJob("tensorrt", "g.onnx", str(tmp_path / "g.plan"), 87, (FREE,)))
