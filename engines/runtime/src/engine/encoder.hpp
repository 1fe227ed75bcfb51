// Images to what the decoder takes of them, with a cache of images seen before, as
// nvlm_deploy.runtime.encoder.

#pragma once

#include "base/cancellation.hpp"
#include "bundle/model_config.hpp"
#include "engine/image_cache.hpp"
#include "session/session.hpp"

namespace nvlm {

// The sessions that see images, which must outlive it, and their cache. Several threads may use it.
class ImageEncoder {
  public:
    ImageEncoder(const ModelConfig& config, const Sessions& sessions, std::size_t cache_bytes)
        : variant_(config.variant),
          vision_(*sessions.vision),
          tiles_(sessions.tiles.get()),
          cache_(cache_bytes) {}

    // Throws Error: failure, or cancelled.
    SharedImage encode(const TiledImage& image, Cancellation& cancellation);
    ImageCache& cache() noexcept { return cache_; }

  private:
    EncodedImage make(const TiledImage& image, Cancellation& cancellation) const;
    std::size_t cross_tiles(std::size_t tiles) const noexcept;

    char variant_;
    const VisionSession& vision_;
    const TileSession* tiles_;
    ImageCache cache_;
};

}  // namespace nvlm
