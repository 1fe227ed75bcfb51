#include "engine/image_cache.hpp"

#include "base/sha256.hpp"

namespace nvlm {

std::string ImageCache::key(const TiledImage& image) {
    Sha256 digest;
    const std::size_t tiles = image.tiles();
    digest.add(&tiles, sizeof tiles);
    digest.add(image.pixels.data(), image.pixels.size());
    return digest.finish();
}

SharedImage ImageCache::get(const std::string& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) {
        ++facts_.misses;
        return nullptr;
    }
    ++facts_.hits;
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->image;
}

void ImageCache::put(const std::string& key, const SharedImage& image) {
    if (image->bytes() > max_bytes_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    // Another thread may have encoded the same image meanwhile.
    if (by_key_.count(key) != 0) return;
    entries_.push_front({key, image});
    by_key_[key] = entries_.begin();
    facts_.bytes += image->bytes();
    while (facts_.bytes > max_bytes_) {
        facts_.bytes -= entries_.back().image->bytes();
        by_key_.erase(entries_.back().key);
        entries_.pop_back();
    }
}

void ImageCache::clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
    by_key_.clear();
    facts_.bytes = 0;
}

ImageCacheFacts ImageCache::facts() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    ImageCacheFacts facts = facts_;
    facts.entries = entries_.size();
    return facts;
}

}  // namespace nvlm
