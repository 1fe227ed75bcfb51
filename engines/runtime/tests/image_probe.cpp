// Tiles images as the library does, one line of stdin after the other:
//
//     tiles KERNELS TILE_SIZE MAX_TILES PATH           -> "COLUMNS ROWS CRC32 CRC32 ..."
//     time KERNELS TILE_SIZE MAX_TILES REPEATS PATH    -> milliseconds of tiling alone, the best of REPEATS
//     resize KERNELS WIDTH HEIGHT PATH                 -> CRC-32 of the stretched pixels
//     kernels                                          -> names of the kernels that can run here
//
// KERNELS is one of these or `best`. What fails is answered by "error STATUS MESSAGE".

#include <algorithm>
#include <chrono>
#include <iostream>
#include <sstream>
#include <string>

#include <zlib.h>

#include "error.hpp"
#include "image/decode.hpp"
#include "image/resize.hpp"
#include "image/tiles.hpp"

namespace {

using nvlm::Image;
using nvlm::Kernels;

const Kernels& named_kernels(const std::string& name) {
    if (name == "best") return nvlm::best_kernels();
    const Kernels* found = nvlm::find_kernels(name.c_str());
    if (found == nullptr) throw nvlm::Error(nvlm::Status::unsuitable, "no kernels " + name);
    return *found;
}

std::string rest_of(std::istringstream& line) {
    std::string path;
    std::getline(line >> std::ws, path);
    return path;
}

void print_tiles(std::istringstream& line) {
    std::string kernels;
    nvlm::TileRule rule;
    line >> kernels >> rule.tile_size >> rule.max_tiles;
    const nvlm::TiledImage tiled = tile_image(nvlm::load_image(rest_of(line)), rule, named_kernels(kernels));
    std::cout << tiled.grid.columns << ' ' << tiled.grid.rows;
    for (const std::uint32_t crc : tiled.crc32) std::cout << ' ' << crc;
}

void print_time(std::istringstream& line) {
    std::string kernels;
    nvlm::TileRule rule;
    int repeats = 1;
    line >> kernels >> rule.tile_size >> rule.max_tiles >> repeats;
    const Image image = nvlm::load_image(rest_of(line));
    double best = 1e300;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        tile_image(image, rule, named_kernels(kernels));
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        best = std::min(best, took.count());
    }
    std::cout << best;
}

void print_resized(std::istringstream& line) {
    std::string kernels;
    int width = 0, height = 0;
    line >> kernels >> width >> height;
    const Image image = nvlm::load_image(rest_of(line));
    const Image resized = nvlm::resize_bicubic(image, width, height, named_kernels(kernels));
    std::cout << ::crc32(0, resized.row(0), static_cast<uInt>(resized.size_bytes()));
}

void answer(std::istringstream& line) {
    std::string verb;
    line >> verb;
    if (verb == "tiles") return print_tiles(line);
    if (verb == "time") return print_time(line);
    if (verb == "resize") return print_resized(line);
    for (const char* name : {"scalar", "sse4.1", "avx2", "neon"}) {
        if (nvlm::find_kernels(name) != nullptr) std::cout << name << ' ';
    }
}

}  // namespace

int main() {
    for (std::string text; std::getline(std::cin, text);) {
        std::istringstream line(text);
        try {
            answer(line);
        } catch (const nvlm::Error& error) {
            std::cout << "error " << static_cast<int>(error.status()) << ' ' << error.what();
        }
        std::cout << std::endl;
    }
    return 0;
}
