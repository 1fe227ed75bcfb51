"""An engine bundle under verification: its graphs' intermediate results, its logits, and its answers.

Shapes: S tokens, V visual tokens, D decoder width, L logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nvlm_deploy.backends.onnxruntime.probe import GraphProbe
from nvlm_deploy.backends.onnxruntime.stored import stored_matrices
from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.eval.prefill import Prefill, image_tiles
from nvlm_deploy.preprocess.assembly import tile_tags
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.runtime import Engine
from nvlm_deploy.runtime.bundle import Bundle, open_sessions, open_tiles
from nvlm_deploy.runtime.encoder import divide_tokens
from nvlm_deploy.runtime.engine import DEFAULT_IMAGE_CACHE_BYTES
from nvlm_deploy.runtime.image_cache import ImageCache
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
        manifest = self.bundle.manifest
        graphs = [manifest.vision["model"], manifest.llm["model"]]
        if "tiles" in manifest.llm:
            graphs.append(manifest.llm["tiles"]["model"])
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
        session = open_tiles(self.bundle, self._options)
        runs: list[States] = []
        for number, prompt in enumerate(prompts):
            sequence, images = prompt.sequence, []
            if number in visual:
                tokens_TND = visual[number].reshape(len(sequence.tiles), -1, visual[number].shape[1])
                tokens_TND = tokens_TND[self._places_of_tags(prompt)]
                images = [divide_tokens(self.bundle.config, session, tokens_TND)]
            given = Prefill.of(sequence, images)
            tokens_VD = self._no_tokens() if given.visual_VD is None else given.visual_VD
            places_V, wanted_R = sequence.visual_positions, prompt.probe_positions()
            runs.append(probe.prompt(sequence.input_ids, tokens_VD, places_V, wanted_R, given.seen))
        return runs

    def _probe(self, graph: str, places: Sequence[Place]) -> GraphProbe:
        readers = {place.name: place.read_by for place in places if place.read_by is not None}
        return GraphProbe(self.bundle.directory / graph, readers, self._options)

    def _logits(self, prompt: VerifyPrompt) -> Rows:
        # The runtime finds an image in its cache if it makes the same tiles.
        engine, order = self.engine, self._places_of_tags(prompt)
        images = [engine.encoder.encode_tiles(tiles[order]) for tiles in image_tiles(prompt.sequence)]
        return Prefill.of(prompt.sequence, images).logits(self._decoder, prompt.logit_positions)

    def _places_of_tags(self, prompt: VerifyPrompt) -> list[int]:
        """Order in which the tiles of an image are given to the engine.

        Tags among keys are constants of an NVLM-H's graph, the k-th tile's is the k-th. Attention does not
        see the order of keys, so that exchanging tags is giving the tiles in each other's places.
        """
        order = list(range(len(prompt.sequence.tiles)))
        cross = prompt.sequence.cross
        if cross is not None:
            known = tile_tags(self.bundle.tokenizer, self.bundle.config)
            for tile, tag in enumerate(cross.tags):
                order[known.index(tuple(tag.tolist()))] = tile
        return order

    def _no_tokens(self) -> Rows:
        return np.empty((0, self.bundle.config.language.hidden_size), np.float32)
