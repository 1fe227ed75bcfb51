"""Versions that go together. Data from the packages' own metadata and release notes, read in 2026.

TensorRT-LLM pins everything around it, so its row decides. The build of engines ended with 1.2.x: 1.3 and
newer serve unified checkpoints with PyTorch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorRtLlmRow:
    """What one release of TensorRT-LLM needs; requirements in the notation of Python packages."""

    release: str
    tensorrt: str | None
    torch: str
    transformers: str
    modelopt: str
    cuda: int
    pythons: tuple[str, ...] = ("3.10", "3.12")


# PyPI metadata of every release; 0.12 is the branch v0.12.0-jetson, for JetPack 6.
TENSORRT_LLM = (
    TensorRtLlmRow("0.12", "~=10.3", ">=2.4,<2.6", "<=4.42.4", "~=0.15", 12, ("3.10",)),
    TensorRtLlmRow("0.16", "~=10.7.0", ">=2.4,<2.6", ">=4.38.2,<=4.45.1", "~=0.17", 12),
    TensorRtLlmRow("0.20", "~=10.10.0", "~=2.7.0", "~=4.51.1", "~=0.29", 12),
    TensorRtLlmRow("0.21", "~=10.11.0", ">=2.7.1,<2.8", "~=4.51.1", "~=0.31", 12),
    TensorRtLlmRow("1.0", "~=10.11.0", ">=2.7.1,<2.8", "==4.53.1", "~=0.33", 12),
    TensorRtLlmRow("1.1", "~=10.13.3", "~=2.9.0", "==4.56.0", "~=0.37", 13),
    TensorRtLlmRow("1.2", "~=10.14.1", ">=2.9.1,<2.10", "==4.57.3", "~=0.37", 13),
    TensorRtLlmRow("1.3", None, ">=2.10,<2.12", ">=4.57.3,<6", ">=0.37", 13),
)
# The oldest driver branch that runs programs of a CUDA release.
LEAST_DRIVER = {12: (525, 60), 13: (580, 65)}
# JetPack by release of Jetson Linux; of other releases the first number tells the generation.
JETPACK = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.4": "7.1",
}
JETPACK_GENERATION = {35: "5", 36: "6", 38: "7", 39: "7"}
# GPUs that TensorRT for RTX compiles for.
RTX_SMS = (75, 80, 86, 89, 120, 121)


def row_of(version: str) -> TensorRtLlmRow | None:
    """The row of an installed TensorRT-LLM."""
    mine = release(version)
    return next((row for row in TENSORRT_LLM if release(row.release) == mine[:2]), None)


def release(version: str) -> Release:
    """The numbers before any suffix: (10, 14, 1, 48) of `10.14.1.48.post1`, (2, 13, 0) of `2.13.0+cpu`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version fulfills all parts of a requirement such as `>=2.9.1,<2.10` or `~=10.14.1`."""
    return all(_holds(release(version), part.strip()) for part in requirement.split(","))


def _holds(version: Release, part: str) -> bool:
    found = re.fullmatch(r"(~=|==|>=|<=|<|>)(\d+(?:\.\d+)*)", part)
    if found is None:
        raise ValueError(f"{part!r} is no requirement")
    operator, wanted = found[1], release(found[2])
    length = max(len(version), len(wanted))
    mine, theirs = (numbers + (0,) * (length - len(numbers)) for numbers in (version, wanted))
    if operator == "~=":
        return mine >= theirs and version[: len(wanted) - 1] == wanted[:-1]
    return {
        "==": mine == theirs,
        ">=": mine >= theirs,
        "<=": mine <= theirs,
        "<": mine < theirs,
        ">": mine > theirs,
    }[operator]
