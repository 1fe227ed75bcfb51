// Shapes: G KV heads, L entries of all images, K head size.

#include "engine/seen_tiles.hpp"

namespace nvlm {

namespace {

// [G, l, K] of every image to [G, L, K].
std::vector<float> joined(const std::vector<SharedImage>& images, std::size_t which) {
    const std::size_t heads = images.front()->states->kv_heads;
    std::vector<float> all;
    for (std::size_t head = 0; head < heads; ++head) {
        for (const SharedImage& image : images) {
            const std::vector<float>& numbers = image->states->arrays[which].numbers;
            const auto size = static_cast<std::ptrdiff_t>(numbers.size() / heads);
            const auto first = numbers.begin() + static_cast<std::ptrdiff_t>(head) * size;
            all.insert(all.end(), first, first + size);
        }
    }
    return all;
}

}  // namespace

std::shared_ptr<const TileStates> lay_out(const std::vector<SharedImage>& images) {
    std::vector<SharedImage> attended;
    for (const SharedImage& image : images) {
        if (image->states) attended.push_back(image);
    }
    if (attended.empty()) return nullptr;
    if (attended.size() == 1) return {attended.front(), &*attended.front()->states};
    auto all = std::make_shared<TileStates>();
    const TileStates& first = *attended.front()->states;
    all->kv_heads = first.kv_heads;
    for (std::size_t i = 0; i < first.arrays.size(); ++i) {
        all->arrays.push_back({first.arrays[i].name, joined(attended, i)});
    }
    std::int64_t before = 0;
    for (const SharedImage& image : attended) {
        for (const std::int64_t tile : image->states->tiles)
            all->tiles.push_back(tile < 0 ? -1 : tile + before);
        before += image->states->tile_count();
    }
    return all;
}

}  // namespace nvlm
