"""Open an engine bundle and generate. Imports numpy, pillow, tokenizers and the backend's session only."""

from nvlm_deploy.runtime.engine import Engine
from nvlm_deploy.runtime.result import Request, Result, TextStream

__all__ = ["Engine", "Request", "Result", "TextStream"]
