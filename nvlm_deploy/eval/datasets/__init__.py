"""Benchmarks from local files, in the formats that they are published in."""

from __future__ import annotations

from nvlm_deploy.eval.datasets.example import DatasetFiles, DatasetFormat, Example
from nvlm_deploy.eval.datasets.registry import FORMATS, find_format, read_dataset

__all__ = ["FORMATS", "DatasetFiles", "DatasetFormat", "Example", "find_format", "read_dataset"]
