// The tile contract: an RGB image becomes the 8-bit tiles that the vision tower sees.
//
// The rule is the released `dynamic_preprocess` with a thumbnail, to the bit: the grid whose aspect is
// nearest to the image's, one bicubic stretch of the whole image, tiles row by row, the thumbnail last.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "image/image.hpp"
#include "image/kernels.hpp"

namespace nvlm {

// `tile_size`: side in pixels.
struct TileRule {
    int tile_size = 448;
    int min_tiles = 1;
    int max_tiles = 6;
};

struct Grid {
    int columns = 1;
    int rows = 1;
};

// `pixels`: [tiles, tile_size, tile_size, 3]; regular tiles row by row, then the thumbnail. A 1 x 1 grid
// has one tile, which is the thumbnail. `crc32`: of each tile's bytes.
struct TiledImage {
    Grid grid;
    int tile_size = 0;
    std::vector<std::uint8_t> pixels;
    std::vector<std::uint32_t> crc32;

    std::size_t tiles() const noexcept { return crc32.size(); }
    std::size_t tile_bytes() const noexcept {
        return static_cast<std::size_t>(tile_size) * static_cast<std::size_t>(tile_size) * 3;
    }
    const std::uint8_t* tile(std::size_t index) const noexcept {
        return pixels.data() + index * tile_bytes();
    }
};

// The grid for an image of `width` x `height` pixels. Of exactly equally near grids a later one, with more
// tiles, wins only if the image has more than half of its pixels.
Grid choose_grid(std::int64_t width, std::int64_t height, const TileRule& rule);

TiledImage tile_image(const Image& image, const TileRule& rule, const Kernels& kernels = best_kernels());

}  // namespace nvlm
