// What the decoder takes of images seen before, by their tiles.

#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "image/tiles.hpp"
#include "session/session.hpp"

namespace nvlm {

// `visual`: the visual tokens that stand in the sequence: all in NVLM-D, those of the thumbnail (or of the
// only tile) in NVLM-H, none in NVLM-X. `states`: keys and values of the other tiles, if there are any.
struct EncodedImage {
    std::vector<float> visual;
    std::optional<TileStates> states;

    std::size_t bytes() const noexcept {
        return visual.size() * sizeof(float) + (states ? states->bytes() : 0);
    }
};

using SharedImage = std::shared_ptr<const EncodedImage>;

struct ImageCacheFacts {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;
    std::size_t bytes = 0;
    std::size_t entries = 0;
};

// The images used last, at most `max_bytes` of them; safe to share between threads. A whole image is one
// entry, so its numbers never depend on what else was encoded beside it.
class ImageCache {
  public:
    explicit ImageCache(std::size_t max_bytes) : max_bytes_(max_bytes) {}

    static std::string key(const TiledImage& image);
    // Null: not there.
    SharedImage get(const std::string& key);
    void put(const std::string& key, const SharedImage& image);
    void clear();
    ImageCacheFacts facts() const;

  private:
    struct Entry {
        std::string key;
        SharedImage image;
    };

    mutable std::mutex mutex_;
    std::size_t max_bytes_;
    std::list<Entry> entries_;
    std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
    ImageCacheFacts facts_;
};

}  // namespace nvlm
