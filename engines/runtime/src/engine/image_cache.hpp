// Visual tokens of images seen before, by their tiles.

#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "image/tiles.hpp"

namespace nvlm {

using VisualTokens = std::shared_ptr<const std::vector<float>>;

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
    VisualTokens get(const std::string& key);
    void put(const std::string& key, const VisualTokens& tokens);
    void clear();
    ImageCacheFacts facts() const;

  private:
    struct Entry {
        std::string key;
        VisualTokens tokens;
    };

    static std::size_t bytes_of(const VisualTokens& tokens) { return tokens->size() * sizeof(float); }

    mutable std::mutex mutex_;
    std::size_t max_bytes_;
    std::list<Entry> entries_;
    std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
    ImageCacheFacts facts_;
};

}  // namespace nvlm
