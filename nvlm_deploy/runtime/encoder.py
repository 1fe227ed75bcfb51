"""Images to what the decoder takes of them, with a cache of images seen before.

Shapes: V visual tokens, D hidden size.
"""

from __future__ import annotations

from nvlm_deploy.backends.protocol import TileSession, VisionSession
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.runtime.image_cache import EncodedImage, ImageCache, Tiles


class ImageEncoder:
    """The sessions that see images, and their cache.

    tiles: makes keys and values for cross-attention; None for NVLM-D, which has none.
    """

    def __init__(
        self,
        config: NvlmConfig,
        vision: VisionSession,
        tiles: TileSession | None,
        cache: ImageCache,
    ) -> None:
        assert (tiles is None) == (config.cross_attention is None), f"an NVLM-{config.variant} with {tiles}"
        self._config, self._vision, self._tiles, self._cache = config, vision, tiles, cache

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
        attended = self._config.cross_tiles(len(tiles))
        # A copy, so that the tokens of tiles that are in keys and values now are not kept.
        visual_VD = tokens_TND[attended:].reshape(-1, tokens_TND.shape[-1])
        if not attended or self._tiles is None:
            return EncodedImage(visual_VD)
        return EncodedImage(visual_VD.copy(), self._tiles.states(tokens_TND[:attended]))
