"""Logits and hidden states of the PyTorch model, step by step, with one step's weights in memory.

Shapes: T tiles, N positions of a tile, C tower width, V visual tokens, S tokens, D decoder width, L logits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.plan import EMBEDDING
from nvlm_deploy.quantization.spool import Hidden, Spool
from nvlm_deploy.quantization.steps import DecoderLayerStep, HeadStep, Step, VisionLayerStep, model_steps
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.verify.prompts import VerifyPrompt, spread, tile_probe_positions
from nvlm_deploy.verify.states import Place, Rows, States, decoder_places, tower_places

_PROJECTED_ROWS = 48


@dataclass(slots=True)
class WalkResult:
    """What a model makes of prompts.

    logits: float32 [L, vocabulary] of every prompt. states: rows of all probed prompts together.
    visual: float32 [V, D] of every probed prompt with an image, by its number.
    """

    logits: list[Rows] = field(default_factory=list)
    states: dict[str, Rows] = field(default_factory=dict)
    visual: dict[int, Rows] = field(default_factory=dict)


class ModelWalk:
    """Runs a model's steps in order over all prompts; hidden states are on disk between two steps."""

    def __init__(self, model: StreamedModel, progress: ProgressCallback = no_progress) -> None:
        self._model, self._progress = model, progress
        self._steps = model_steps(model)

    def run(
        self,
        prompts: Sequence[VerifyPrompt],
        probed: frozenset[int] = frozenset(),
        visual: dict[int, Rows] | None = None,
    ) -> WalkResult:
        """Compute logits of all prompts and the states of those that are `probed`.

        With `visual`, float32 [V, D] by the prompt's number, the decoder alone runs, on these.
        """
        with tempfile.TemporaryDirectory(prefix="nvlm-verify-") as directory:
            spool, first = Spool(Path(directory)), 0
            if visual is not None:
                first = next(i for i, step in enumerate(self._steps) if step.name == "language.embed_tokens")
                for number, tokens in visual.items():
                    spool.write(first, number, Hidden(torch.from_numpy(tokens)))
            config = self._model.weights.reader.config
            places = (*tower_places(config), *decoder_places(config))
            recorder = _Recorder(prompts, probed, places)
            for index in range(first, len(self._steps)):
                self._run_step(index, prompts, spool, recorder)
                spool.forget(index)
                self._progress("reference", index + 1 - first, len(self._steps) - first)
        return recorder.finish()

    def _run_step(
        self, index: int, prompts: Sequence[VerifyPrompt], spool: Spool, recorder: _Recorder
    ) -> None:
        step, model = self._steps[index], self._model
        names = _needed(step, model)
        with model.loaded(names), torch.no_grad(), recorder.watching(step, model.model):
            for number, prompt in enumerate(prompts):
                hidden = None
                if spool.has(index, number):
                    hidden = spool.read(index, number, tiles=step.attends).on(model.device)
                recorder.number = number
                if isinstance(step, HeadStep):
                    assert hidden is not None
                    recorder.result.logits.append(_logits(model, prompt, hidden.x))
                    continue
                result = step.run(model, prompt.sequence, hidden)
                if result is not None:
                    recorder.take(step, result.x)
                    spool.write(index + 1, number, result)


class _Recorder:
    """Keeps the rows of probed prompts that are to be compared."""

    def __init__(
        self, prompts: Sequence[VerifyPrompt], probed: frozenset[int], places: Sequence[Place]
    ) -> None:
        self.result = WalkResult()
        self.number = 0
        self._prompts, self._probed, self._places = prompts, probed, places
        self._rows: dict[str, list[Rows]] = {}
        self._inside: list[str] = []
        self._passed: dict[str, Tensor] = {}

    def take(self, step: Step, y: Tensor) -> None:
        """Keep rows of a step's result: [T, N, C] in the tower, [V, D] of the projector, [1, S, D] after."""
        passed, self._passed = self._passed, {}
        if self.number not in self._probed:
            return
        if step.name == "projector":
            self.result.visual[self.number] = y.float().cpu().numpy()
        self._keep(_place_behind(step), y)
        stream = y
        for place in reversed(self._inside):
            # A branch that was skipped has left the stream as it is behind it.
            stream = passed.get(place, stream)
            self._keep(place, stream)

    @contextmanager
    def watching(self, step: Step, model: nn.Module) -> Iterator[None]:
        """Keep rows of the stream between the branches of a layer inside the block."""
        if not isinstance(step, VisionLayerStep | DecoderLayerStep):
            yield
            return
        inside = [place for place in self._places if place.name.startswith(f"{step.name}.")][:-1]
        self._inside = [place.name for place in inside]
        hooks = [
            model.get_submodule(str(place.read_by)).register_forward_pre_hook(self._hook(place.name))
            for place in inside
        ]
        try:
            yield
        finally:
            self._inside = []
            for hook in hooks:
                hook.remove()

    def finish(self) -> WalkResult:
        """All rows of a place together."""
        self.result.states = {place: np.concatenate(rows) for place, rows in self._rows.items()}
        return self.result

    def _hook(self, place: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._passed[place] = inputs[0]

        return keep

    def _keep(self, place: str, y: Tensor) -> None:
        if place.startswith("vision."):
            rows = y[:, torch.from_numpy(tile_probe_positions(y.shape[1]))].flatten(0, 1)
        elif place == "projector":
            rows = y[torch.from_numpy(projected_rows(len(y)))]
        else:
            rows = y[0, torch.from_numpy(self._prompts[self.number].probe_positions())]
        self._rows.setdefault(place, []).append(rows.float().cpu().numpy())


def projected_rows(visual_tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Visual tokens of one prompt that are compared."""
    return spread(visual_tokens, _PROJECTED_ROWS)


def split_states(states: States) -> tuple[States, States]:
    """States of tower and projector, and states of the decoder."""
    decoder = {name: rows for name, rows in states.items() if name.startswith("language.")}
    return {name: rows for name, rows in states.items() if name not in decoder}, decoder


def _place_behind(step: Step) -> str:
    if isinstance(step, VisionLayerStep | DecoderLayerStep):
        return f"{step.name}.mlp"
    return "language.embeddings" if step.name == "language.embed_tokens" else step.name


def _needed(step: Step, model: StreamedModel) -> tuple[str, ...]:
    """Parameters that a step computes with; a head that is tied to the embedding needs that."""
    tied = model.weights.reader.config.language.tie_word_embeddings
    if isinstance(step, HeadStep) and tied and EMBEDDING not in step.computes_with:
        return (*step.computes_with, EMBEDDING)
    return step.computes_with


def _logits(model: StreamedModel, prompt: VerifyPrompt, x_1SD: Tensor) -> Rows:
    language = model.model.language
    hidden = language.norm(x_1SD[:, torch.from_numpy(prompt.logit_positions)])
    logits: Rows = language.logits(hidden)[0].float().cpu().numpy()
    return logits
