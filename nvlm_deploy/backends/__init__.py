"""Backends: makers and runners of engines behind one small protocol."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.protocol import (
    DecoderSession,
    GraphFacts,
    InflightSession,
    KvCache,
    SessionOptions,
    VisionSession,
)
from nvlm_deploy.errors import UsageError, did_you_mean

__all__ = [
    "INFLIGHT_BACKENDS",
    "DecoderSession",
    "GraphFacts",
    "InflightSession",
    "KvCache",
    "SessionOptions",
    "VisionSession",
    "open_decoder_session",
    "open_inflight_session",
    "open_vision_session",
    "take_part",
]

# The modules that run engines; each is imported when an engine of its kind is opened.
_SESSIONS = {
    "onnxruntime": "nvlm_deploy.backends.onnxruntime.session",
    "tensorrt": "nvlm_deploy.backends.tensorrt.run",
    "tensorrt_llm": "nvlm_deploy.backends.tensorrt_llm.session",
    "tensorrt_rtx": "nvlm_deploy.backends.tensorrt_rtx.run",
}

# Backends that schedule requests and choose tokens themselves.
INFLIGHT_BACKENDS = ("tensorrt_llm",)


def open_vision_session(backend: str, path: Path, options: SessionOptions | None = None) -> VisionSession:
    """Open a vision graph with the backend that made it."""
    session: VisionSession = _module(backend).open_vision(path, options or SessionOptions())
    return session


def open_decoder_session(backend: str, path: Path, options: SessionOptions | None = None) -> DecoderSession:
    """Open a decoder graph with the backend that made it."""
    session: DecoderSession = _module(backend).open_decoder(path, options or SessionOptions())
    return session


def open_inflight_session(
    backend: str, directory: Path, llm: Mapping[str, Any], tokens_per_tile: int
) -> InflightSession:
    """Open the language model of a bundle whose backend drives itself.

    Args:
        directory: the bundle's. llm: its manifest's section.
    """
    session: InflightSession = _module(backend).open_session(directory, llm, tokens_per_tile)
    return session


def take_part(backend: str, directory: Path, llm: Mapping[str, Any], tokens_per_tile: int) -> None:
    """Among several ranks, work for the one that takes requests, and end the process with it.

    Returns at once on that one, and where there is no other.
    """
    _module(backend).take_part(directory, llm, tokens_per_tile)


def _module(backend: str) -> Any:
    if backend not in _SESSIONS:
        raise UsageError(f"there is no backend '{backend}'", hint=did_you_mean(backend, _SESSIONS))
    return importlib.import_module(_SESSIONS[backend])
