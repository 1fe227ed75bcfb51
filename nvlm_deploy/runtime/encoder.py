"""Tiles to visual tokens, with a cache of images seen before."""

from __future__ import annotations

from nvlm_deploy.backends.protocol import VisionSession
from nvlm_deploy.preprocess.tiles import TiledImage
from nvlm_deploy.runtime.image_cache import ImageCache, VisualTokens


class ImageEncoder:
    """A vision session and its cache."""

    def __init__(self, vision: VisionSession, cache: ImageCache) -> None:
        self._vision, self._cache = vision, cache

    def encode(self, image: TiledImage) -> VisualTokens:
        """Visual tokens [V, D] of one image, from the cache if its tiles have been seen."""
        key = self._cache.key(image.tiles)
        tokens = self._cache.get(key)
        if tokens is None:
            encoded = self._vision.encode(image.tiles)
            tokens = encoded.reshape(-1, encoded.shape[-1])
            self._cache.put(key, tokens)
        return tokens
