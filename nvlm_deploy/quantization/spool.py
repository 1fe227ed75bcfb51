"""Hidden states of the calibration set between two steps, on disk: one file per sample and step.

Tiles that cross-attention attends to are the same in all layers, so they are kept once per sample.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.safetensors_file import read_elements, read_header, write_file
from nvlm_deploy.models.cross_attention import TileMemory

_TILES = "tiles"


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one step makes of a sample, and the next one sees.

    x: as each step says. tiles: what cross-attention attends to, from the token embedding on; None in the
    tower, in an NVLM-D, and for text without images.
    """

    x: Tensor
    tiles: TileMemory | None = None

    def on(self, device: torch.device) -> Hidden:
        """The same on another device."""
        return Hidden(self.x.to(device), None if self.tiles is None else self.tiles.to(device))


class Spool:
    """Arrays of float32 by step and sample. A step's input stays until the step is finished."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, step: int, sample: int, hidden: Hidden) -> None:
        """Keep what `step` will see of one sample; tiles that are kept already are not written again."""
        path = self._path(step, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, {"x": hidden.x.float()})
        tiles = self._tiles(sample)
        if hidden.tiles is not None and not tiles.exists():
            tiles.parent.mkdir(exist_ok=True)
            # A run that is killed here must not leave half of a file that looks whole.
            temporary = tiles.with_suffix(".tmp")
            write_file(temporary, _as_floats(hidden.tiles))
            temporary.replace(tiles)

    def has(self, step: int, sample: int) -> bool:
        """Whether `step` sees anything of the sample."""
        return self._path(step, sample).exists()

    def read(self, step: int, sample: int, *, tiles: bool = False) -> Hidden:
        """What `step` sees of one sample; the tiles only if they are wanted, because they are large.

        Raises:
            NvlmError: the file is not what was written.
        """
        x = _read(self._path(step, sample))["x"]
        wanted = tiles and self._tiles(sample).exists()
        return Hidden(x, _from_floats(_read(self._tiles(sample))) if wanted else None)

    def forget(self, step: int) -> None:
        """Remove the input of a finished step."""
        shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:04}"

    def _path(self, step: int, sample: int) -> Path:
        return self._folder(step) / f"{sample:06}.safetensors"

    def _tiles(self, sample: int) -> Path:
        return self.directory / _TILES / f"{sample:06}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    infos = read_header(path).tensors
    return {
        name: read_elements(path, info, 0, info.num_elements, torch.float32).view(info.shape)
        for name, info in infos.items()
    }


def _as_floats(tiles: TileMemory) -> dict[str, Tensor]:
    # Numbers of tiles are small integers, which floats hold exactly.
    tensors = {"features": tiles.features_BLD.float(), "tiles": tiles.tiles_BL.float()}
    return tensors if tiles.bound_BLD is None else {**tensors, "bound": tiles.bound_BLD.float()}


def _from_floats(tensors: dict[str, Tensor]) -> TileMemory:
    return TileMemory(tensors["features"], tensors["tiles"].long(), tensors.get("bound"))
