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
from nvlm_deploy.backends.protocol import SeenTiles, SessionOptions, TileSession
from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.preprocess.prompt import tile_tags
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.runtime import Engine
from nvlm_deploy.runtime.bundle import Bundle, open_sessions, open_tiles
from nvlm_deploy.runtime.engine import DEFAULT_IMAGE_CACHE_BYTES
from nvlm_deploy.runtime.image_cache import EncodedImage, ImageCache
from nvlm_deploy.runtime.seen_tiles import first_look
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
        self._tiles: TileSession | None = None
        tags = tile_tags(self.bundle.tokenizer, self.bundle.config)
        self._tag_numbers = {ids: number for number, ids in enumerate(tags)}

    @property
    def engine(self) -> Engine:
        """The opened engine; opened when it is first needed, because probes are sessions of their own."""
        if self._engine is None:
            self._vision, self._decoder = open_sessions(self.bundle, self._options)
            cache = ImageCache(DEFAULT_IMAGE_CACHE_BYTES)
            self._engine = Engine(self.bundle, self._vision, self._decoder, cache, self.tiles)
        return self._engine

    @property
    def tiles(self) -> TileSession | None:
        """What makes keys and values of tiles, which probes ask, too; None in NVLM-D."""
        if self._tiles is None:
            self._tiles = open_tiles(self.bundle, self._options)
        return self._tiles

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
        runs: list[States] = []
        for number, prompt in enumerate(prompts):
            sequence = prompt.sequence
            image = self._placed(sequence, visual.get(number, self._no_tokens()))
            where, seen = prompt.probe_positions(), _seen(sequence, image)
            runs.append(
                probe.prompt(sequence.input_ids, image.visual, sequence.visual_positions, where, seen)
            )
        return runs

    def _probe(self, graph: str, places: Sequence[Place]) -> GraphProbe:
        readers = {place.name: place.read_by for place in places if place.read_by is not None}
        return GraphProbe(self.bundle.directory / graph, readers, self._options)

    def _logits(self, prompt: VerifyPrompt) -> Rows:
        engine, sequence = self.engine, prompt.sequence
        ids_S, places_V = sequence.input_ids, sequence.visual_positions
        cache = self._decoder.new_cache(1, len(ids_S))
        image = EncodedImage(self._no_tokens())
        if len(sequence.tiles):
            image = self._encode(engine, sequence)
        index_V2 = np.column_stack([np.zeros_like(places_V), places_V])
        lengths, wanted_1L = np.array([len(ids_S)], np.int32), prompt.logit_positions[None]
        seen = _seen(sequence, image)
        logits_1LV = self._decoder.run(ids_S[None], lengths, cache, image.visual, index_V2, wanted_1L, seen)
        return np.asarray(logits_1LV[0])

    def _encode(self, engine: Engine, sequence: CalibrationSample) -> EncodedImage:
        """What the decoder takes of an image; the runtime finds it in its cache if its tiles are the same."""
        numbers = self._numbers(sequence)
        if numbers is None or np.array_equal(numbers, np.arange(len(numbers))):
            return engine.encoder.encode_tiles(sequence.tiles)
        tokens_TND = self._vision.encode(sequence.tiles)
        return self._placed(sequence, tokens_TND.reshape(-1, tokens_TND.shape[-1]))

    def _placed(self, sequence: CalibrationSample, tokens_VD: Rows) -> EncodedImage:
        """Visual tokens of all tiles as the decoder takes them: in the sequence, or as keys and values."""
        cross = sequence.cross
        if cross is None or not len(tokens_VD):
            return EncodedImage(tokens_VD)
        tokens_TND = tokens_VD.reshape(len(sequence.tiles), -1, tokens_VD.shape[-1])
        visual_VD = tokens_TND[cross.sequence_tiles].reshape(-1, tokens_VD.shape[-1])
        if not len(cross.tiles) or self.tiles is None:
            return EncodedImage(visual_VD)
        return EncodedImage(visual_VD, self.tiles.states(tokens_TND[cross.tiles], self._numbers(sequence)))

    def _numbers(self, sequence: CalibrationSample) -> npt.NDArray[np.int64] | None:
        """Which tag each tile in cross-attention has, from 0; None where tags are not among the keys."""
        if sequence.cross is None or not self._tag_numbers:
            return None
        return np.array([self._tag_numbers[tuple(ids.tolist())] for ids in sequence.cross.tags], np.int64)

    def _no_tokens(self) -> Rows:
        return np.empty((0, self.bundle.config.language.hidden_size), np.float32)


def _seen(sequence: CalibrationSample, image: EncodedImage) -> SeenTiles | None:
    return None if image.states is None else first_look([sequence], [[image.states]])
