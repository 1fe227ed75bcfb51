"""Open plans of TensorRT for running. Not yet run on a GPU."""

from __future__ import annotations

from pathlib import Path

from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.backends.tensorrt.cuda import CudaDevice
from nvlm_deploy.backends.tensorrt.library import load
from nvlm_deploy.backends.tensorrt.session import PlanDecoderSession, PlanVisionSession


def open_vision(path: Path, options: SessionOptions) -> PlanVisionSession:
    """Open a vision plan; see `open_vision_session`. Options are of CPUs."""
    return PlanVisionSession(load(), path, CudaDevice())


def open_decoder(path: Path, options: SessionOptions) -> PlanDecoderSession:
    """Open a decoder plan; see `open_decoder_session`. Options are of CPUs, pieces are the plan's."""
    return PlanDecoderSession(load(), path, CudaDevice())
