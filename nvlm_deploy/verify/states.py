"""Hidden states of a model at named places, and where those places are.

The residual stream is compared after every attention and every MLP, which is where the next norm reads it.

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
    layers = config.vision.num_layers
    norms = [(f"vision.layers.{i}.norm1", f"vision.layers.{i}.norm2") for i in range(layers)]
    stream = _stream("vision", norms, last="vision.stream", part="tower")
    return (*stream, Place("projector", "projector", None))


def decoder_places(config: NvlmConfig) -> tuple[Place, ...]:
    """The decoder's stream, from the embeddings to the last layer."""
    names = [f"language.layers.{i}" for i in range(config.language.num_layers)]
    norms = [(f"{name}.input_norm", f"{name}.post_attention_norm") for name in names]
    return _stream("language", norms, last="language.norm", part="decoder")


def _stream(prefix: str, norms: list[tuple[str, str]], last: str, part: Part) -> tuple[Place, ...]:
    """Places of one residual stream; `norms` are the two of every layer, `last` reads the end."""
    readers = [norm for pair in norms for norm in pair] + [last]
    names = [f"{prefix}.embeddings"]
    for layer in range(len(norms)):
        names += [f"{prefix}.layers.{layer}.attention", f"{prefix}.layers.{layer}.mlp"]
    before: list[str | None] = [None, *names[:-1]]
    return tuple(
        Place(name, part, reader, previous)
        for name, reader, previous in zip(names, readers, before, strict=True)
    )
