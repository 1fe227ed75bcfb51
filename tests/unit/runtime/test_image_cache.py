"""The cache of visual tokens."""

from __future__ import annotations

import numpy as np

from nvlm_deploy.runtime.image_cache import EncodedImage, ImageCache


def tokens(value: float) -> EncodedImage:
    return EncodedImage(np.full((4, 8), value, dtype=np.float32))


def test_least_recently_used_goes_first() -> None:
    cache = ImageCache(2 * tokens(0).nbytes)
    cache.put(b"a", tokens(1))
    cache.put(b"b", tokens(2))
    assert cache.get(b"a") is not None
    cache.put(b"c", tokens(3))
    assert cache.get(b"b") is None
    for key, value in ((b"a", 1), (b"c", 3)):
        kept = cache.get(key)
        assert kept is not None
        assert np.array_equal(kept.visual, tokens(value).visual)
    assert (cache.hits, cache.misses) == (3, 1)


def test_zero_bytes_turns_it_off() -> None:
    cache = ImageCache(0)
    cache.put(b"a", tokens(1))
    assert cache.get(b"a") is None


def test_replacing_an_entry_counts_it_once() -> None:
    cache = ImageCache(2 * tokens(0).nbytes)
    for _ in range(5):
        cache.put(b"a", tokens(1))
    cache.put(b"b", tokens(2))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is not None


def test_key_tells_tilings_apart() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    changed = pixels.copy()
    changed[1, 0, 0, 0] ^= 1
    assert ImageCache.key(pixels) != ImageCache.key(changed)
    assert ImageCache.key(pixels) == ImageCache.key(pixels.copy())
