"""Hidden states of a model at named places, and where those places are.

The residual stream is compared after every attention and every MLP, which is where the next norm reads it.
Cross-attention has a place of its own. Prompts without tiles skip it, and have the same states on both sides.

Shapes: R rows (positions of all probed prompts), C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nvlm_deploy.config.model import NvlmConfig

Part = Literal["tower", "projector", "decoder"]
Rows = npt.NDArray[np.float32]
States = Mapping[str, Rows]
"""Rows float32 [R, C] by the place's name."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the model.

    name: of the module whose result has just been added, `vision.layers.3.mlp`; or of an embedding.
    read_by: the module that reads the stream there, by the model's name; None if it is the part's output.
    before: the place before it in the same stream, whose difference is what one branch adds.
    """

    name: str
    part: Part
    read_by: str | None
    before: str | None = None


def tower_places(config: NvlmConfig) -> tuple[Place, ...]:
    """The tower's stream, from the embedding to the last layer, and the projector's output."""
    branches: list[tuple[str, str]] = []
    for layer in range(config.vision.num_layers):
        name = f"vision.layers.{layer}"
        branches += [(f"{name}.attention", f"{name}.norm1"), (f"{name}.mlp", f"{name}.norm2")]
    stream = _stream("vision", branches, last="vision.stream", part="tower")
    return (*stream, Place("projector", "projector", None))


def decoder_places(config: NvlmConfig) -> tuple[Place, ...]:
    """The decoder's stream, from the embeddings to the last layer."""
    cross = config.cross_attention
    branches: list[tuple[str, str]] = []
    for layer in range(config.language.num_layers):
        name = f"language.layers.{layer}"
        of_layer = [
            (f"{name}.attention", f"{name}.input_norm"),
            (f"{name}.mlp", f"{name}.post_attention_norm"),
        ]
        if cross is not None and layer in cross.layers:
            place = 0 if cross.placement == "before_layer" else 1
            of_layer.insert(place, (f"{name}.cross", f"{name}.cross.norm"))
        branches += of_layer
    return _stream("language", branches, last="language.norm", part="decoder")


def _stream(prefix: str, branches: list[tuple[str, str]], last: str, part: Part) -> tuple[Place, ...]:
    """Places of one residual stream: behind each branch, which has a norm before it; `last` reads the end."""
    names = [f"{prefix}.embeddings", *(name for name, _ in branches)]
    readers = [*(norm for _, norm in branches), last]
    before: list[str | None] = [None, *names[:-1]]
    return tuple(
        Place(name, part, reader, previous)
        for name, reader, previous in zip(names, readers, before, strict=True)
    )
