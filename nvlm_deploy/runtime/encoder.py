"""Images to what the decoder takes of them, with a cache of images seen before.

Shapes: V visual tokens, D hidden size.
"""

from __future__ import annotations

from nvlm_deploy.backends.protocol import Float32, TileSession, VisionSession
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
        return divide_tokens(self._config, self._tiles, self._vision.encode(tiles))


def divide_tokens(config: NvlmConfig, tiles: TileSession | None, tokens_TND: Float32) -> EncodedImage:
    """Visual tokens [T, N, D] of an image to what stands in the sequence, and keys and values of the rest."""
    attended = config.cross_tiles(len(tokens_TND))
    visual_VD = tokens_TND[attended:].reshape(-1, tokens_TND.shape[-1])
    if not attended or tiles is None:
        return EncodedImage(visual_VD)
    # A copy, so that the tokens of tiles that are in keys and values now are not kept.
    return EncodedImage(visual_VD.copy(), tiles.states(tokens_TND[:attended]))
