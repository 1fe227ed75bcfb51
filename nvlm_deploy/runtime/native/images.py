"""Image sources as the native runtime takes them, and its images as Python's.

JPEG and PNG files are decoded natively, to the pixels of Pillow. Everything else goes through Pillow here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_deploy.preprocess.images import ImageSource, load_image
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.runtime.native import abi
from nvlm_deploy.runtime.native.library import path_bytes

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"

Tiles = npt.NDArray[np.uint8]


class NativeImage(TiledImage):
    """An image that was tiled natively; `tiles` cuts it once more when they are asked for."""

    __slots__ = ("_cut",)

    def __init__(self, grid: tuple[int, int], crc32: tuple[int, ...], cut: Callable[[], Tiles]) -> None:
        for name, value in (("grid", grid), ("crc32", crc32), ("_cut", cut)):
            object.__setattr__(self, name, value)

    @property
    def tiles(self) -> Tiles:
        """uint8 [T, S, S, 3], from the source as it is now."""
        cut: Callable[[], Tiles] = object.__getattribute__(self, "_cut")
        return cut()

    def __len__(self) -> int:
        return len(self.crc32)


class Images:
    """The images of a request, in one array of structures; keeps what these point to."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        """Errors call images without a path `image 1`, `image 2`, ...

        Raises:
            UsageError: a source of no supported type.
            NvlmError: an image that Pillow is asked for and cannot read.
        """
        self._kept: list[object] = []
        images = [self._image(source, f"image {number}") for number, source in enumerate(sources, start=1)]
        self.array = (abi.Image * len(images))(*images)

    def __len__(self) -> int:
        return len(self.array)

    def _image(self, source: ImageSource, label: str) -> abi.Image:
        if isinstance(source, (str, Path)) and _is_native_file(Path(source)):
            return abi.Image(path=path_bytes(source))
        if isinstance(source, bytes) and source.startswith((_JPEG, _PNG)):
            self._kept.append(source)
            return abi.Image(
                file=ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p), file_size=len(source)
            )
        pixels = np.ascontiguousarray(load_image(source, label=label))
        self._kept.append(pixels)
        height, width, _ = pixels.shape
        return abi.Image(pixels=pixels.ctypes.data, width=width, height=height)


def _is_native_file(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PNG)).startswith((_JPEG, _PNG))
    except (OSError, ValueError):
        return False  # Pillow's way has the error's words.
