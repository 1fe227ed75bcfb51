"""Rows of Parquet files; the one module that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.eval.records import Record


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a file, images as their undecoded bytes.

    Raises:
        UnsuitableError: pyarrow is not installed.
        NvlmError: the file cannot be read.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UnsuitableError(
            f"reading {path} needs the package pyarrow, which is not installed",
            hint="pip install 'nvlm-deploy[calibration]', or pip install pyarrow",
        ) from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise NvlmError(f"{path} cannot be read: {error}") from None
    for i, row in enumerate(rows):
        yield Record.of(row, f"{path}: row {i}")
