"""What this machine can do at most: bytes read a second, and products of matrices a second.

The shares that other benchmarks print are of these. They are measured with what engines use, numpy for memory
and ONNX Runtime for products, and with as many threads; the best of all rounds counts, since a limit is what
nothing stood in the way of.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from nvlm_deploy.backends.onnxruntime.library import open_graph
from nvlm_deploy.backends.protocol import SessionOptions

# Far more than any cache.
_READ_BYTES = 512 << 20
# A prompt of 512 tokens, and matrices as in a decoder of a billion parameters.
_ROWS, _INNER, _COLUMNS = 512, 1024, 4096
_OPERATIONS = 2.0 * _ROWS * _INNER * _COLUMNS


@dataclass(frozen=True, slots=True)
class Limits:
    """read_gb_s: 10^9 bytes from memory a second; gops: 10^9 operations a second of a large product,
    two for each multiply-add, by precision: `fp32`, and `int8` (unsigned by signed)."""

    threads: int
    read_gb_s: float
    gops: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def read_ms(self, nbytes: float) -> float:
        """Milliseconds that reading so many bytes takes at least."""
        return nbytes / self.read_gb_s / 1e6

    def compute_ms(self, operations: dict[str, float]) -> float:
        """Milliseconds that operations take at least, given by the planner's names of precisions."""
        return sum(count / self._rate(precision) / 1e6 for precision, count in operations.items())

    def _rate(self, precision: str) -> float:
        return self.gops["int8" if precision.startswith("int8") else "fp32"]


def measure_limits(threads: int, rounds: int = 5) -> Limits:
    """Measure with so many threads; a few seconds and 0.6 GB of memory."""
    read_s = _read_seconds(threads, rounds)
    gops = {}
    with tempfile.TemporaryDirectory(prefix="nvlm-limits-") as directory:
        for precision in ("fp32", "int8"):
            seconds = _product_seconds(precision, Path(directory), threads, rounds)
            gops[precision] = _OPERATIONS / seconds / 1e9
    return Limits(threads, _READ_BYTES / read_s / 1e9, gops)


def _read_seconds(threads: int, rounds: int) -> float:
    numbers = np.ones(_READ_BYTES // 4, np.int32)
    parts = np.array_split(numbers, threads)
    with ThreadPoolExecutor(threads) as pool:
        # The largest number of all: one comparison a number, far faster than memory, and without the GIL.
        return _best(lambda: list(pool.map(np.max, parts)), rounds)


def _product_seconds(precision: str, directory: Path, threads: int, rounds: int) -> float:
    path = directory / f"{precision}.onnx"
    onnx.save(_product(precision), path)
    session = open_graph(path, SessionOptions(threads=threads))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 255, (_ROWS, _INNER)).astype(np.uint8 if precision == "int8" else np.float32)
    return _best(lambda: session.run(None, {"a": rows}), rounds)


def _product(precision: str) -> onnx.ModelProto:
    """A product by a constant matrix, which ONNX Runtime packs ahead as it does for weights."""
    integer = precision == "int8"
    element = np.int8 if integer else np.float32
    weights = np.random.default_rng(1).integers(-127, 128, (_INNER, _COLUMNS)).astype(element)
    types = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", ["a", "b"], ["c"])],
        precision,
        [helper.make_tensor_value_info("a", types[0], [_ROWS, _INNER])],
        [helper.make_tensor_value_info("c", types[1], [_ROWS, _COLUMNS])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds` rounds, after one that does not count."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
