// What the runtime needs of a bundle's `config.json`, in the released structure.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nvlm {

// `variant` is D, X or H; `cross_layers`: decoder layers with cross-attention, ascending, none in D.
struct ModelConfig {
    char variant = 'D';
    std::int64_t tile_size = 0;
    std::int64_t min_tiles = 0;
    std::int64_t max_tiles = 0;
    std::int64_t visual_tokens_per_tile = 0;
    std::int64_t hidden_size = 0;
    std::int64_t vocab_size = 0;
    std::int64_t max_positions = 0;
    std::string thumbnail_tag;
    std::vector<std::int64_t> cross_layers;

    // Throws Error (failure): the file is missing, or a value is not supported; names file and field.
    static ModelConfig from_directory(const std::string& directory);
};

}  // namespace nvlm
