"""An engine bundle on disk: manifest, config, tokenizer, and the sessions of its backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvlm_deploy.backends import (
    INFLIGHT_BACKENDS,
    DecoderSession,
    GraphFacts,
    InflightSession,
    SessionOptions,
    TileSession,
    VisionSession,
    open_decoder_session,
    open_inflight_session,
    open_tile_session,
    open_vision_session,
    take_part,
)
from nvlm_deploy.config.machine import Machine
from nvlm_deploy.config.manifest import MANIFEST_NAME, EngineManifest, verify_files
from nvlm_deploy.config.mismatch import Mismatch, refuse
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError, VerificationError
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tokenizer import Tokenizer
from nvlm_deploy.runtime.manifest_checks import (
    COMPILED_BACKENDS,
    config_mismatches,
    file_mismatches,
    graph_mismatches,
    machine_mismatches,
    require_gpu,
)


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
            VerificationError: a field of the manifest that another file contradicts.
        """
        manifest = EngineManifest.read(directory)
        verify_files(directory, manifest, digests=verify_digests)
        config = NvlmConfig.from_directory(directory)
        contradicted = [*config_mismatches(manifest, config), *file_mismatches(manifest)]
        _refuse(directory, manifest, contradicted, VerificationError)
        tokenizer = Tokenizer.from_directory(directory)
        prompts = PromptBuilder(tokenizer, config, manifest.prompt.mode)
        return cls(directory, manifest, config, tokenizer, prompts)


def open_engine(
    bundle: Bundle, options: SessionOptions
) -> tuple[VisionSession, DecoderSession | InflightSession]:
    """Open what answers requests: sessions that are driven step by step, or one that drives itself.

    An engine of several ranks is opened by as many processes (mpirun); this returns in the first one only.

    Raises:
        NvlmError, UnsuitableError, VerificationError: as `open_sessions`.
        UnsuitableError: it is one of NVLM-X or NVLM-H that schedules requests itself.
    """
    manifest, directory = bundle.manifest, bundle.directory
    if manifest.backend not in INFLIGHT_BACKENDS:
        return open_sessions(bundle, options)
    if bundle.config.cross_attention is not None:
        raise UnsuitableError(
            f"this is an NVLM-{bundle.config.variant}, to whose {manifest.backend} engines this release "
            "does not hand tiles yet",
            hint="docs/tensorrt-llm.md says what requests have; for answers: --set backend=onnxruntime",
        )
    _check_machine(bundle)
    tokens = manifest.tiler.visual_tokens_per_tile
    take_part(manifest.backend, directory, manifest.llm, tokens)
    # First, so that its memory is taken before keys and values get a share of the rest.
    vision = open_vision_session(manifest.vision["backend"], directory / manifest.vision["model"], options)
    return vision, open_inflight_session(manifest.backend, directory, manifest.llm, tokens)


def open_sessions(bundle: Bundle, options: SessionOptions) -> tuple[VisionSession, DecoderSession]:
    """Open the vision and the decoder session with the backend that the manifest names.

    Raises:
        NvlmError: the backend is unknown here, or its library refuses a graph.
        UnsuitableError: the engine was compiled for another machine, or the device is not there.
        VerificationError: a field of the manifest that a graph contradicts.
    """
    manifest, directory = bundle.manifest, bundle.directory
    if manifest.backend in INFLIGHT_BACKENDS:
        raise UsageError(
            f"engines of {manifest.backend} give tokens and no logits",
            hint="nvlm-build verify BUNDLE --against KIT asks them the probes of their kit",
        )
    _check_machine(bundle)
    vision = open_vision_session(manifest.backend, directory / manifest.vision["model"], options)
    _check_graph(bundle, "vision", vision.facts)
    decoder = open_decoder_session(manifest.backend, directory / manifest.llm["model"], options)
    _check_graph(bundle, "llm", decoder.facts)
    return vision, decoder


def open_tiles(bundle: Bundle, options: SessionOptions) -> TileSession | None:
    """Open what makes keys and values of tiles; None for NVLM-D, which has no cross-attention.

    Raises:
        NvlmError, VerificationError: as `open_sessions`.
    """
    manifest = bundle.manifest
    if bundle.config.cross_attention is None:
        return None
    path = bundle.directory / manifest.llm["tiles"]["model"]
    session = open_tile_session(manifest.backend, path, options)
    _check_graph(bundle, "llm.tiles", session.facts)
    return session


def _check_graph(bundle: Bundle, part: str, facts: GraphFacts | None) -> None:
    if facts is not None:
        found = graph_mismatches(bundle.manifest, part, facts)
        _refuse(bundle.directory, bundle.manifest, found, VerificationError)


def _check_machine(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.backend in COMPILED_BACKENDS:
        machine = Machine.here()
        require_gpu(bundle.directory, manifest, machine)
        _refuse(bundle.directory, manifest, machine_mismatches(manifest, machine), UnsuitableError)


def _refuse(directory: Path, manifest: EngineManifest, found: list[Mismatch], error: type[NvlmError]) -> None:
    refuse(found, str(directory / MANIFEST_NAME), "rebuild it: " + manifest.rebuild_command, error)
