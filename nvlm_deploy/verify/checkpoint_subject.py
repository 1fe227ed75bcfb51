"""A quantized checkpoint under verification, computed by the PyTorch model with what its codes stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.models.decoder import DecoderLayer
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.streamed_model import StreamedModel
from nvlm_deploy.verify.prompts import VerifyPrompt
from nvlm_deploy.verify.states import Rows, States
from nvlm_deploy.verify.walk import ModelWalk, split_states
from nvlm_deploy.verify.weights import WeightFigure, checkpoint_weights


class CheckpointSubject:
    """The whole model in memory, FP32; kernels that quantize activations on the fly are not part of it."""

    def __init__(
        self, directory: Path, device: torch.device, progress: ProgressCallback = no_progress
    ) -> None:
        """Load the checkpoint.

        Raises:
            NvlmError: it is no quantized checkpoint, or not in order.
        """
        self._model = _ResidentModel(directory, device)
        self._walk = ModelWalk(self._model, progress)

    @property
    def has_fp8_kv_cache(self) -> bool:
        """Whether keys and values go through FP8."""
        return any(layer.attention.quantize_kv is not None for layer in self._layers())

    def weights(self, reference: ModelWeights) -> list[WeightFigure]:
        """How far every quantized matrix is from the released one."""
        return list(checkpoint_weights(reference, self._model.weights, self._model.quantized))

    def states(self, prompts: Sequence[VerifyPrompt], visual: Mapping[int, Rows]) -> States:
        """Hidden states of `prompts`; the decoder sees `visual`, so that its figures are its own."""
        probed = frozenset(range(len(prompts)))
        tower, _ = split_states(self._walk.run(prompts, probed).states)
        _, decoder = split_states(self._walk.run(prompts, probed, dict(visual)).states)
        return {**tower, **decoder}

    def logits(self, prompts: Sequence[VerifyPrompt]) -> list[Rows]:
        """Logits float32 [L, vocabulary] of every prompt, from tiles to logits."""
        return self._walk.run(prompts).logits

    @contextmanager
    def with_plain_kv_cache(self) -> Iterator[None]:
        """Keep keys and values as they are computed, inside the block."""
        layers = self._layers()
        kept = [layer.attention.quantize_kv for layer in layers]
        try:
            for layer in layers:
                layer.attention.quantize_kv = None
            yield
        finally:
            for layer, quantize in zip(layers, kept, strict=True):
                layer.attention.quantize_kv = quantize

    def _layers(self) -> list[DecoderLayer]:
        layers = self._model.model.language.layers
        return [layer for layer in layers if isinstance(layer, DecoderLayer)]


class _ResidentModel(StreamedModel):
    """A model whose steps find all parameters in memory."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        weights = QuantizedWeights(QuantizedReader(directory))
        self.weights, self.device = weights, device
        self.quantized = tuple(weights.storages)
        self.model = load_quantized_model(directory).to(device)

    @contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Nothing to load."""
        yield
