"""An engine bundle under verification: its graphs' intermediate results, its logits, and its answers.

Shapes: S tokens, V visual tokens, D decoder width, L logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.onnxruntime.probe import GraphProbe
from nvlm_deploy.backends.onnxruntime.stored import stored_matrices
from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.runtime import Engine
from nvlm_deploy.runtime.bundle import Bundle, open_sessions, open_tiles
from nvlm_deploy.runtime.engine import DEFAULT_IMAGE_CACHE_BYTES
from nvlm_deploy.runtime.image_cache import ImageCache, VisualTokens
from nvlm_deploy.verify.prompts import VerifyPrompt, tile_probe_positions
from nvlm_deploy.verify.states import Place, Rows, States, decoder_places, tower_places
from nvlm_deploy.verify.walk import projected_rows
from nvlm_deploy.verify.weights import WeightFigure, engine_weights


class EngineSubject:
    """Runs a bundle on prepared sequences through its sessions, and on questions through its runtime."""

    def __init__(
        self,
        directory: Path,
        options: SessionOptions | None = None,
        progress: ProgressCallback = no_progress,
    ) -> None:
        """Open the bundle; every file is held against its digest.

        Raises:
            NvlmError: no bundle, or a changed file.
        """
        self.bundle = Bundle.open(directory)
        self._options, self._progress = options or SessionOptions(), progress
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The opened engine; opened when it is first needed, because probes are sessions of their own."""
        if self._engine is None:
            vision, self._decoder = open_sessions(self.bundle, self._options)
            cache = ImageCache(DEFAULT_IMAGE_CACHE_BYTES)
            tiles = open_tiles(self.bundle, self._options)
            self._engine = Engine(self.bundle, vision, self._decoder, cache, tiles)
        return self._engine

    def weights(self, reference: ModelWeights) -> list[WeightFigure]:
        """How far every matrix of the graphs is from the checkpoint's."""
        graphs = (self.bundle.manifest.vision["model"], self.bundle.manifest.llm["model"])
        return [
            figure
            for graph in graphs
            for figure in engine_weights(reference, stored_matrices(self.bundle.directory / graph))
        ]

    def states(self, prompts: Sequence[VerifyPrompt], visual: Mapping[int, Rows]) -> States:
        """Hidden states of `prompts`; the decoder sees `visual`, so that its figures are its own."""
        rows: dict[str, list[Rows]] = {}
        for run in [*self._tower_states(prompts), *self._decoder_states(prompts, visual)]:
            for name, values in run.items():
                rows.setdefault(name, []).append(values)
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def logits(self, prompts: Sequence[VerifyPrompt]) -> list[Rows]:
        """Logits float32 [L, vocabulary] of every prompt, from tiles to logits."""
        results = []
        for number, prompt in enumerate(prompts):
            results.append(self._logits(prompt))
            self._progress("logits", number + 1, len(prompts))
        return results

    def answers(self, prompts: Sequence[VerifyPrompt]) -> list[str]:
        """Answers of the runtime, greedy, from the image to the text."""
        texts = []
        for number, prompt in enumerate(prompts):
            images = [] if prompt.image is None else [prompt.image]
            # An answer that is longer than the right one is wrong already.
            limit = len(prompt.answer_ids) + 1
            result = self.engine.generate(prompt.exchange.question, images, max_new_tokens=limit)
            texts.append(result.text.strip())
            self._progress("answers", number + 1, len(prompts))
        return texts

    def _tower_states(self, prompts: Sequence[VerifyPrompt]) -> list[States]:
        config = self.bundle.config
        probe = self._probe(self.bundle.manifest.vision["model"], tower_places(config))
        positions = tile_probe_positions(config.vision.num_positions)
        runs: list[States] = []
        for prompt in prompts:
            if len(prompt.sequence.tiles):
                run = probe.tiles(prompt.sequence.tiles, positions)
                tokens_VD = run.pop("visual_tokens")
                runs.append({**run, "projector": tokens_VD[projected_rows(len(tokens_VD))]})
        return runs

    def _decoder_states(self, prompts: Sequence[VerifyPrompt], visual: Mapping[int, Rows]) -> list[States]:
        probe = self._probe(self.bundle.manifest.llm["model"], decoder_places(self.bundle.config))
        runs: list[States] = []
        for number, prompt in enumerate(prompts):
            sequence = prompt.sequence
            tokens_VD = visual.get(number, self._no_tokens())
            places_V = sequence.visual_positions
            runs.append(probe.prompt(sequence.input_ids, tokens_VD, places_V, prompt.probe_positions()))
        return runs

    def _probe(self, graph: str, places: Sequence[Place]) -> GraphProbe:
        readers = {place.name: place.read_by for place in places if place.read_by is not None}
        return GraphProbe(self.bundle.directory / graph, readers, self._options)

    def _logits(self, prompt: VerifyPrompt) -> Rows:
        engine, sequence = self.engine, prompt.sequence
        ids_S, places_V = sequence.input_ids, sequence.visual_positions
        cache = self._decoder.new_cache(1, len(ids_S))
        visual: tuple[Rows | None, npt.NDArray[np.int64] | None] = (None, None)
        if len(places_V):
            index_V2 = np.column_stack([np.zeros_like(places_V), places_V])
            visual = self._encode(engine, prompt), index_V2
        lengths = np.array([len(ids_S)], np.int32)
        wanted_1L = prompt.logit_positions[None]
        logits_1LV = self._decoder.run(ids_S[None], lengths, cache, *visual, wanted_1L)
        return np.asarray(logits_1LV[0])

    def _encode(self, engine: Engine, prompt: VerifyPrompt) -> VisualTokens:
        """Visual tokens [V, D]; the runtime finds them in its cache if it makes the same tiles."""
        return engine.encoder.encode_tiles(prompt.sequence.tiles).visual

    def _no_tokens(self) -> Rows:
        return np.empty((0, self.bundle.config.language.hidden_size), np.float32)
