"""An engine bundle on disk: manifest, config, tokenizer, and the sessions of its backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.backends import (
    DecoderSession,
    SessionOptions,
    VisionSession,
    open_decoder_session,
    open_vision_session,
)
from nvlm_deploy.config.manifest import EngineManifest, verify_files
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess.prompt import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; every file has been held against the manifest."""

    directory: Path
    manifest: EngineManifest
    config: NvlmConfig
    tokenizer: Tokenizer
    prompts: PromptBuilder

    @classmethod
    def open(cls, directory: Path, *, verify_digests: bool = True) -> Bundle:
        """Read and check everything but the graphs.

        Raises:
            NvlmError: no bundle; a file that is missing or has changed.
        """
        manifest = EngineManifest.read(directory)
        verify_files(directory, manifest, digests=verify_digests)
        config = NvlmConfig.from_directory(directory)
        tokenizer = Tokenizer.from_directory(directory)
        prompts = PromptBuilder(tokenizer, config, manifest.prompt.mode)
        return cls(directory, manifest, config, tokenizer, prompts)


def open_sessions(bundle: Bundle, options: SessionOptions) -> tuple[VisionSession, DecoderSession]:
    """Open the vision and the decoder session with the backend that the manifest names.

    Raises:
        NvlmError: the backend is unknown here, or its library refuses a graph.
    """
    manifest = bundle.manifest
    return (
        open_vision_session(manifest.backend, bundle.directory / manifest.vision["model"], options),
        open_decoder_session(manifest.backend, bundle.directory / manifest.llm["model"], options),
    )
