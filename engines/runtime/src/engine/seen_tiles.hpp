// The tiles of a request's images laid out for cross-attention, as nvlm_deploy.runtime.seen_tiles.

#pragma once

#include <memory>
#include <vector>

#include "engine/image_cache.hpp"

namespace nvlm {

// Keys and values of all images, one image behind the other; null if there are none. Those of a single image
// are shared and not copied.
std::shared_ptr<const TileStates> lay_out(const std::vector<SharedImage>& images);

}  // namespace nvlm
