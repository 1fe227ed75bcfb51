"""Image sources to RGB, with the pixels of `PIL.Image.open(file).convert("RGB")`.

The released preprocessing converts to RGB first and ignores EXIF orientation; so does this.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from nvlm_deploy.errors import NvlmError, UsageError

ImageSource: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

# The size from which Pillow itself warns of a decompression bomb: 256 MiB of RGB.
MAX_IMAGE_PIXELS = 89_478_485

# Warning filters belong to the process: two threads that change them at once can leave them changed.
_WARNING_FILTERS = threading.Lock()


def load_image(source: ImageSource, *, label: str = "image") -> Image.Image:
    """Decode one image to RGB.

    Args:
        source: a path, the bytes of an image file, a PIL image of any mode, or a uint8 array of
            shape (H, W, 3) in RGB order or (H, W) in grey.
        label: how errors call an image that has no path.

    Returns:
        A loaded PIL image of mode "RGB", independent of `source`. EXIF orientation is not applied.

    Raises:
        UsageError: `source` is of no supported type, dtype or shape.
        NvlmError: the file is missing, empty, no image, corrupt, truncated, or has more than
            MAX_IMAGE_PIXELS pixels. The message names the file, or `label`.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        with _open_file(path) as file:
            return _decode(file, str(path))
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"{label} ({len(source):,} bytes)")
    if isinstance(source, np.ndarray):
        return _from_array(source, label)
    if isinstance(source, Image.Image):
        return _from_pil(source, label)
    raise UsageError(
        f"{label} is a {type(source).__name__}, which is no image",
        hint="pass a path, the bytes of an image file, a PIL image, or a uint8 array (H, W, 3)",
    )


def _open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NvlmError(
            f"the image {path} does not exist", hint="give the path of a local image file"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NvlmError(f"the image {path} cannot be read: {reason}") from None


def _decode(file: BinaryIO, name: str) -> Image.Image:
    if not file.read(1):
        raise NvlmError(f"{name} is empty", hint="check how it was written")
    file.seek(0)
    with _decoding(name), Image.open(file) as image:
        _check_size(image, name)
        return image.convert("RGB")


def _from_pil(image: Image.Image, label: str) -> Image.Image:
    name = str(getattr(image, "filename", "") or label)
    with _decoding(name):
        _check_size(image, name)
        return image.convert("RGB")


def _from_array(array: npt.NDArray[np.uint8], label: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise UsageError(
            f"{label} is an array of dtype {array.dtype} and shape {array.shape}",
            hint="an array must be uint8 with shape (H, W, 3) in RGB order, or (H, W) in grey",
        )
    if array.size == 0:
        raise NvlmError(f"{label} is an array of shape {array.shape}: it has no pixels")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise NvlmError(f"{name} has no pixels: {width} x {height}", hint="check how the image was made")
    if width * height > MAX_IMAGE_PIXELS:
        raise _too_large(name, f"{width:,} x {height:,} pixels")


def _too_large(name: str, size: str) -> NvlmError:
    return NvlmError(
        f"{name} is too large: {size}, more than the limit of {MAX_IMAGE_PIXELS:,} pixels",
        hint="scale the image down first; a small file that claims this many may be a decompression bomb",
    )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an error that names the image; let no Pillow warning out.

    Pillow's decoders raise what the bytes provoke: OSError, SyntaxError, struct.error, IndexError
    and others. So everything is caught here, around Pillow's own code alone.
    """
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except NvlmError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(name, f"over {2 * MAX_IMAGE_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise NvlmError(
                f"{name} is not an image, or in a format that Pillow cannot read",
                hint="convert it to PNG or JPEG",
            ) from None
        except Exception as error:
            raise NvlmError(
                f"{name} is corrupt or truncated: {error}",
                hint="open it in an image viewer and save it again, or fetch it anew",
            ) from error
