// What a tokenizer.json says, as far as it is byte-level BPE; anything else is refused by name.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nvlm {

struct AddedToken {
    std::int64_t id = -1;
    std::string content;
    bool special = false;
    bool normalized = false;
};

// The left and right token of a merge, and the token that they become. Merges are listed by rank.
struct Merge {
    std::uint32_t left;
    std::uint32_t right;
    std::uint32_t merged;
};

struct TokenizerFile {
    bool nfc = false;
    // Whether text is split by Qwen2's pattern; without, each stretch between added tokens is one word.
    bool split_words = false;
    std::vector<AddedToken> added;
    std::vector<Merge> merges;
    // The bytes of each token by id, empty where there is none; added tokens included.
    std::vector<std::string> bytes;
    // The token of each single byte; -1 for a byte that has none, which encoding drops.
    std::array<std::int64_t, 256> byte_ids{};
    // Number of different tokens.
    std::size_t size = 0;
};

// Reads the text of a tokenizer.json. Throws Error (failure): not JSON, incomplete, contradictory, or with a
// setting that is not implemented here.
TokenizerFile read_tokenizer_file(std::string_view json, const std::string& source);

}  // namespace nvlm
