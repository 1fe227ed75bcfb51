"""A model as a row of steps, each small enough to be in memory alone.

Shapes: T tiles, P positions of a tile in the tower, C its width, V visual tokens, S tokens, D decoder width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nvlm_deploy.calibration import CalibrationSample, TokenClass
from nvlm_deploy.models.decoder import KvCache, rotary_tables
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.groups import (
    LinearGroup,
    decoder_layer_groups,
    head_groups,
    projector_groups,
    vision_layer_groups,
)
from nvlm_deploy.quantization.plan import EMBEDDING, LM_HEAD
from nvlm_deploy.quantization.streamed_model import StreamedModel


class Step(Protocol):
    """A part of the model: its parameters, its linears, and what it does to a sample's hidden states."""

    name: str
    parameters: tuple[str, ...]
    groups: tuple[LinearGroup, ...]
    computes_with: tuple[str, ...]
    """The parameters that `run` needs in memory."""

    def classes(self, sample: CalibrationSample) -> Tensor:
        """Token class of every row that the linears see, int8 [rows]; empty if the sample has none."""

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        """Compute what the next step sees. `x` is None at the start, and where a sample has no tiles."""


def model_steps(model: StreamedModel) -> tuple[Step, ...]:
    """All steps of an NVLM-D, in order."""
    config = model.weights.reader.config
    return (
        TileEmbedding(model),
        *(VisionLayerStep(model, layer) for layer in range(config.vision.num_layers)),
        ProjectorStep(model),
        TokenEmbedding(),
        *(DecoderLayerStep(model, layer) for layer in range(config.language.num_layers)),
        HeadStep(model),
    )


class TileEmbedding:
    """Tiles to the sequence that the tower's first layer sees, [T, P, C]."""

    name = "vision.embeddings"
    groups: tuple[LinearGroup, ...] = ()

    def __init__(self, model: StreamedModel) -> None:
        layers = "vision.layers."
        names = tuple(n for n in model.parameters_of("vision") if not n.startswith(layers))
        self.parameters = self.computes_with = names

    def classes(self, sample: CalibrationSample) -> Tensor:
        return torch.empty(0, dtype=torch.int8)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        if not len(sample.tiles):
            return None
        pixels = torch.from_numpy(normalize_tiles(sample.tiles)).to(model.device)
        return model.model.vision.embed(pixels)


class VisionLayerStep:
    """One layer of InternViT."""

    def __init__(self, model: StreamedModel, layer: int) -> None:
        self.name, self.layer = f"vision.layers.{layer}", layer
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self.groups = vision_layer_groups(layer)
        self._positions = model.weights.reader.config.vision.num_positions

    def classes(self, sample: CalibrationSample) -> Tensor:
        return tile_classes(sample).repeat_interleave(self._positions)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        return None if x is None else model.model.vision.layers[self.layer](x)


class ProjectorStep:
    """The last layer's patches to visual tokens, [V, D]."""

    name = "projector"
    groups = projector_groups()

    def __init__(self, model: StreamedModel) -> None:
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self._tokens = model.weights.reader.config.visual_tokens_per_tile

    def classes(self, sample: CalibrationSample) -> Tensor:
        return tile_classes(sample).repeat_interleave(self._tokens)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        return None if x is None else model.model.projector(x[:, 1:]).flatten(0, 1)


class TokenEmbedding:
    """Token ids and visual tokens to the decoder's sequence, [1, S, D]."""

    name = "language.embed_tokens"
    groups: tuple[LinearGroup, ...] = ()
    parameters: tuple[str, ...] = (EMBEDDING,)
    # Rows are read as they are needed: the whole table would be the largest matrix in memory.
    computes_with: tuple[str, ...] = ()

    def classes(self, sample: CalibrationSample) -> Tensor:
        return torch.empty(0, dtype=torch.int8)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        ids, places = torch.from_numpy(sample.input_ids).unique(return_inverse=True)
        rows = [model.weights.read_rows(EMBEDDING, i, i + 1, torch.float32) for i in ids.tolist()]
        embeds_SD = torch.cat(rows)[places].to(model.device)
        if x is not None:
            embeds_SD[torch.from_numpy(sample.visual_positions)] = x
        return embeds_SD.unsqueeze(0)


class KvRange(KvCache):
    """A cache that keeps nothing but the largest magnitude of the keys and values that passed."""

    def __init__(self) -> None:
        super().__init__()
        self.keys_amax = self.values_amax = 0.0

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        self.keys_amax = max(self.keys_amax, float(k_BGTK.abs().max()))
        self.values_amax = max(self.values_amax, float(v_BGTK.abs().max()))
        return k_BGTK, v_BGTK


class DecoderLayerStep:
    """One layer of the decoder."""

    def __init__(self, model: StreamedModel, layer: int) -> None:
        self.name, self.layer = f"language.layers.{layer}", layer
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self.groups = decoder_layer_groups(layer)
        self._config = model.weights.reader.config.language
        self.kv_range = KvRange()

    def classes(self, sample: CalibrationSample) -> Tensor:
        return torch.from_numpy(sample.token_classes)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        assert x is not None
        rotary = rotary_tables(self._config, torch.arange(x.shape[1], device=x.device))
        return model.model.language.layers[self.layer](x, rotary, self.kv_range)


class HeadStep:
    """The last norm and `lm_head`; nothing comes after it."""

    name = "language.lm_head"
    groups = head_groups()

    def __init__(self, model: StreamedModel) -> None:
        names = (*model.parameters_of("language.norm"), LM_HEAD)
        self.parameters = self.computes_with = tuple(n for n in names if n in model.weights.names())

    def classes(self, sample: CalibrationSample) -> Tensor:
        return torch.from_numpy(sample.token_classes)

    def run(self, model: StreamedModel, sample: CalibrationSample, x: Tensor | None) -> Tensor | None:
        assert x is not None
        model.model.language.logits(model.model.language.norm(x))
        return None


def tile_classes(sample: CalibrationSample) -> Tensor:
    """Token class of every tile, int8 [T]: the last of several tiles of an image is its thumbnail."""
    kinds: list[int] = []
    for tiles in sample.tiles_per_image:
        last = TokenClass.THUMBNAIL if tiles > 1 else TokenClass.VISUAL
        kinds += [TokenClass.VISUAL] * (tiles - 1) + [last]
    return torch.tensor(kinds, dtype=torch.int8)
