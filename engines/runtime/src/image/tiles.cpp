#include "image/tiles.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include <zlib.h>

#include "image/resize.hpp"

namespace nvlm {

namespace {

// Fewest tiles first, then fewest columns.
std::vector<Grid> candidate_grids(const TileRule& rule) {
    std::vector<Grid> grids;
    for (int tiles = rule.min_tiles; tiles <= rule.max_tiles; ++tiles) {
        for (int columns = 1; columns <= tiles; ++columns) {
            if (tiles % columns == 0) grids.push_back({columns, tiles / columns});
        }
    }
    return grids;
}

// Append the square of `size` pixels at (left, top).
void append_square(TiledImage& tiled, const Image& image, int left, int top) {
    const std::size_t line = static_cast<std::size_t>(tiled.tile_size) * 3;
    std::uint8_t* const tile = tiled.pixels.data() + tiled.tiles() * tiled.tile_bytes();
    for (int y = 0; y < tiled.tile_size; ++y) {
        std::memcpy(tile + line * static_cast<std::size_t>(y),
                    image.row(top + y) + static_cast<std::ptrdiff_t>(left) * 3, line);
    }
    const auto size = static_cast<uInt>(tiled.tile_bytes());
    tiled.crc32.push_back(static_cast<std::uint32_t>(::crc32(0, tile, size)));
}

}  // namespace

// Differences are compared as IEEE doubles, as in the released `find_closest_aspect_ratio`.
Grid choose_grid(std::int64_t width, std::int64_t height, const TileRule& rule) {
    const double aspect = static_cast<double>(width) / static_cast<double>(height);
    Grid best;
    double smallest = std::numeric_limits<double>::infinity();
    for (const Grid grid : candidate_grids(rule)) {
        const double difference = std::fabs(aspect - static_cast<double>(grid.columns) / grid.rows);
        const double half = 0.5 * rule.tile_size * rule.tile_size * grid.columns * grid.rows;
        const bool large = static_cast<double>(width * height) > half;
        if (difference < smallest || (difference == smallest && large)) {
            best = grid;
            smallest = difference;
        }
    }
    return best;
}

TiledImage tile_image(const Image& image, const TileRule& rule, const Kernels& kernels) {
    const int size = rule.tile_size;
    TiledImage tiled;
    tiled.grid = choose_grid(image.width(), image.height(), rule);
    tiled.tile_size = size;
    const int regular = tiled.grid.columns * tiled.grid.rows;
    tiled.pixels.resize(tiled.tile_bytes() * static_cast<std::size_t>(regular + (regular > 1 ? 1 : 0)));
    if (regular > 1) {
        const Image whole = resize_bicubic(image, tiled.grid.columns * size, tiled.grid.rows * size, kernels);
        for (int row = 0; row < tiled.grid.rows; ++row) {
            for (int column = 0; column < tiled.grid.columns; ++column) {
                append_square(tiled, whole, column * size, row * size);
            }
        }
    }
    append_square(tiled, resize_bicubic(image, size, size, kernels), 0, 0);
    return tiled;
}

}  // namespace nvlm
