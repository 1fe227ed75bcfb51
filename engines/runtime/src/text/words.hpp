// Qwen2's pre-tokenization: where the next word of a text ends.

#pragma once

#include <cstddef>
#include <string_view>

namespace nvlm {

// The end of the first match at `start` of the pattern
//   (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ?[^\s\p{L}\p{N}]+[\r\n]* |
//   \s*[\r\n]+ | \s+(?!\S) | \s+
// `text` is valid UTF-8 and `start` a character's start inside of it; some alternative matches everywhere.
std::size_t word_end(std::string_view text, std::size_t start) noexcept;

}  // namespace nvlm
