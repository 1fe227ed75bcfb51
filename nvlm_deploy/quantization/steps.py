"""A model as a row of steps, each small enough to be in memory alone.

Shapes: T tiles, P positions of a tile in the tower, C its width, V visual tokens of all tiles, S tokens,
D decoder width.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from nvlm_deploy.calibration import UNSEEN, CalibrationSample
from nvlm_deploy.calibration.token_classes import tile_classes
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.decoder import KvCache, SeenTiles, rotary_tables
from nvlm_deploy.models.nvlm import LookUp
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization.groups import (
    LinearGroup,
    decoder_layer_groups,
    head_groups,
    projector_groups,
    vision_layer_groups,
)
from nvlm_deploy.quantization.plan import EMBEDDING, LM_HEAD
from nvlm_deploy.quantization.spool import Hidden
from nvlm_deploy.quantization.streamed_model import StreamedModel


class Step(Protocol):
    """A part of the model: its parameters, its linears, and what it does to a sample's hidden states."""

    name: str
    parameters: tuple[str, ...]
    groups: tuple[LinearGroup, ...]
    computes_with: tuple[str, ...]
    """The parameters that `run` needs in memory."""
    attends: bool
    """Whether `run` needs the tiles of cross-attention."""

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        """Token class of every row that a group sees, or UNSEEN, int8 [rows]; empty if there are none."""

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        """Compute what the next step sees. `hidden` is None at the start, and where a sample has no tiles."""


def model_steps(model: StreamedModel) -> tuple[Step, ...]:
    """All steps of a model, in order."""
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
    attends = False

    def __init__(self, model: StreamedModel) -> None:
        layers = "vision.layers."
        names = tuple(n for n in model.parameters_of("vision") if not n.startswith(layers))
        self.parameters = self.computes_with = names

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        return torch.empty(0, dtype=torch.int8)

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        if not len(sample.tiles):
            return None
        pixels = torch.from_numpy(normalize_tiles(sample.tiles)).to(model.device)
        return Hidden(model.model.vision.embed(pixels))


class VisionLayerStep:
    """One layer of InternViT."""

    attends = False

    def __init__(self, model: StreamedModel, layer: int) -> None:
        self.name, self.layer = f"vision.layers.{layer}", layer
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self.groups = vision_layer_groups(layer)
        self._positions = model.weights.reader.config.vision.num_positions

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        return _tile_classes(sample).repeat_interleave(self._positions)

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        return None if hidden is None else Hidden(model.model.vision.layers[self.layer](hidden.x))


class ProjectorStep:
    """The last layer's patches to visual tokens, [V, D]."""

    name = "projector"
    attends = False

    def __init__(self, model: StreamedModel) -> None:
        config = model.weights.reader.config
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self.groups = projector_groups(config.projector_layers)
        self._tokens = config.visual_tokens_per_tile

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        return _tile_classes(sample).repeat_interleave(self._tokens)

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        return None if hidden is None else Hidden(model.model.projector(hidden.x[:, 1:]).flatten(0, 1))


class TokenEmbedding:
    """Token ids and visual tokens to the decoder's sequence, [1, S, D], and to what is beside it."""

    name = "language.embed_tokens"
    groups: tuple[LinearGroup, ...] = ()
    parameters: tuple[str, ...] = (EMBEDDING,)
    # Rows are read as they are needed: the whole table would be the largest matrix in memory.
    computes_with: tuple[str, ...] = ()
    attends = False

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        return torch.empty(0, dtype=torch.int8)

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        return self.embed(model, sample, hidden, partial(_stored_rows, model))

    def embed(
        self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None, look_up: LookUp
    ) -> Hidden:
        """The same with embeddings of the caller's."""
        embeds_1SD = look_up(torch.from_numpy(sample.input_ids).unsqueeze(0).to(model.device))
        if hidden is None:
            return Hidden(embeds_1SD)
        visual_VD, tiles = hidden.x, CrossTiles.of([sample])
        memory = None
        if tiles is not None:
            visual_TVD = visual_VD.unflatten(0, (sum(sample.tiles_per_image), -1))
            memory = model.model.tile_memory(visual_TVD, tiles.to(model.device), look_up)
            visual_VD = visual_TVD[tiles.sequence_S].flatten(0, 1)
        embeds_1SD[0, torch.from_numpy(sample.visual_positions)] = visual_VD
        return Hidden(embeds_1SD, memory)


def _stored_rows(model: StreamedModel, ids: Tensor) -> Tensor:
    """Embeddings of token ids, FP32, row by row from the checkpoint."""
    wanted, places = ids.cpu().unique(return_inverse=True)
    rows = [model.weights.read_rows(EMBEDDING, i, i + 1, torch.float32) for i in wanted.tolist()]
    return torch.cat(rows)[places].to(model.device)


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
    """One layer of the decoder, with its cross-attention if it has one."""

    def __init__(self, model: StreamedModel, layer: int) -> None:
        config = model.weights.reader.config
        self.name, self.layer = f"language.layers.{layer}", layer
        self.parameters = self.computes_with = model.parameters_of(self.name)
        self.groups = decoder_layer_groups(layer, config.cross_attention)
        self.attends = config.cross_attention is not None and layer in config.cross_attention.layers
        self._config = config.language
        self.kv_range = KvRange()

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        if group.rows == "entries":
            return torch.from_numpy(sample.entry_classes)
        classes_S = torch.from_numpy(sample.token_classes)
        if group.rows == "seeing":
            return torch.where(torch.from_numpy(sample.sees_tiles), classes_S, UNSEEN)
        return classes_S

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        assert hidden is not None
        x_1SD = hidden.x
        rotary = rotary_tables(self._config, torch.arange(x_1SD.shape[1], device=x_1SD.device))
        layer = model.model.language.layers[self.layer]
        return Hidden(layer(x_1SD, rotary, self.kv_range, self._seen(sample, hidden)), hidden.tiles)

    def _seen(self, sample: CalibrationSample, hidden: Hidden) -> SeenTiles | None:
        tiles = CrossTiles.of([sample])
        if not self.attends or hidden.tiles is None or tiles is None:
            return None
        device = hidden.x.device
        # Without keys and values of an earlier run, whose linears may have been others.
        memory = hidden.tiles.to(device)
        return memory, memory.mask(tiles.visible_BT2.to(device))


class HeadStep:
    """The last norm and `lm_head`; nothing comes after it."""

    name = "language.lm_head"
    groups = head_groups()
    attends = False

    def __init__(self, model: StreamedModel) -> None:
        names = (*model.parameters_of("language.norm"), LM_HEAD)
        self.parameters = self.computes_with = tuple(n for n in names if n in model.weights.names())

    def classes(self, sample: CalibrationSample, group: LinearGroup) -> Tensor:
        return torch.from_numpy(sample.token_classes)

    def run(self, model: StreamedModel, sample: CalibrationSample, hidden: Hidden | None) -> Hidden | None:
        assert hidden is not None
        model.model.language.logits(model.model.language.norm(hidden.x))
        return None


def _tile_classes(sample: CalibrationSample) -> Tensor:
    return torch.from_numpy(tile_classes(sample.tiles_per_image))
