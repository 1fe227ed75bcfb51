"""Images to what the decoder takes of them, with a cache of images seen before.

Shapes: V visual tokens, D hidden size.
"""

from __future__ import annotations

from nvlm_deploy.backends.protocol import TileSession, VisionSession
from nvlm_deploy.config.model import Variant
from nvlm_deploy.preprocess.prompt import cross_tiles
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.runtime.image_cache import EncodedImage, ImageCache, Tiles


class ImageEncoder:
    """The sessions that see images, and their cache.

    tiles: makes keys and values for cross-attention; None for NVLM-D, which has none.
    """

    def __init__(
        self,
        vision: VisionSession,
        cache: ImageCache,
        tiles: TileSession | None = None,
        variant: Variant = "D",
    ) -> None:
        assert (tiles is None) == (variant == "D"), f"an NVLM-{variant} with tiles session {tiles}"
        self._vision, self._cache, self._tiles, self._variant = vision, cache, tiles, variant

    def encode(self, image: TiledImage) -> EncodedImage:
        """What the decoder takes of one image, from the cache if its tiles have been seen."""
        return self.encode_tiles(image.tiles)

    def encode_tiles(self, tiles: Tiles) -> EncodedImage:
        """The same of the tiles of one image, uint8 [T, S, S, 3]."""
        key = self._cache.key(tiles)
        encoded = self._cache.get(key)
        if encoded is None:
            encoded = self._encode(tiles)
            self._cache.put(key, encoded)
        return encoded

    def _encode(self, tiles: Tiles) -> EncodedImage:
        tokens_TND = self._vision.encode(tiles)
        attended = cross_tiles(self._variant, len(tiles))
        # A copy, so that the tokens of tiles that are in keys and values now are not kept.
        visual_VD = tokens_TND[attended:].reshape(-1, tokens_TND.shape[-1])
        if not attended or self._tiles is None:
            return EncodedImage(visual_VD)
        return EncodedImage(visual_VD.copy(), self._tiles.states(tokens_TND[:attended]))
