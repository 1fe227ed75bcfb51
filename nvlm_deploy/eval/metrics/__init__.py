"""Metrics of the benchmarks: pure functions of one prediction and its references, one file each."""

from __future__ import annotations

from nvlm_deploy.eval.metrics.metric import Field, Metric
from nvlm_deploy.eval.metrics.registry import METRICS, find_metric

__all__ = ["METRICS", "Field", "Metric", "find_metric"]
