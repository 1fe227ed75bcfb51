#include "engine/encoder.hpp"

#include <utility>

namespace nvlm {

SharedImage ImageEncoder::encode(const TiledImage& image, Cancellation& cancellation) {
    const std::string key = ImageCache::key(image);
    SharedImage known = cache_.get(key);
    if (known) return known;
    auto made = std::make_shared<const EncodedImage>(make(image, cancellation));
    cache_.put(key, made);
    return made;
}

EncodedImage ImageEncoder::make(const TiledImage& image, Cancellation& cancellation) const {
    const std::size_t floats = vision_.floats_per_tile();
    std::vector<float> tokens(image.tiles() * floats);
    vision_.encode(image.pixels.data(), image.tiles(), tokens.data(), cancellation);
    const std::size_t attended = cross_tiles(image.tiles());
    EncodedImage encoded;
    if (attended == 0) {
        encoded.visual = std::move(tokens);
        return encoded;
    }
    encoded.states = tiles_->states(tokens.data(), attended, cancellation);
    encoded.visual.assign(tokens.begin() + static_cast<std::ptrdiff_t>(attended * floats), tokens.end());
    return encoded;
}

// How many of an image's tiles go to cross-attention, from the first on: NVLM-H keeps the last in the
// sequence.
std::size_t ImageEncoder::cross_tiles(std::size_t tiles) const noexcept {
    return variant_ == 'X' ? tiles : variant_ == 'H' ? tiles - 1 : 0;
}

}  // namespace nvlm
