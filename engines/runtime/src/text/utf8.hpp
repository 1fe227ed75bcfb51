// UTF-8: checking, reading, writing, and making text of bytes that may be none.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nvlm {

// What stands at one place of a byte string. `length` counts the bytes of the character, or of the longest
// start of one that is cut off or spoilt there (at least 1).
struct Utf8Unit {
    char32_t point;
    std::size_t length;
    bool valid;
};

// Reads at `position`, which must lie inside of `bytes`. Surrogates and overlong forms are not valid.
Utf8Unit utf8_unit(std::string_view bytes, std::size_t position) noexcept;

// Length of the longest start of `bytes` that is valid UTF-8.
std::size_t utf8_valid_length(std::string_view bytes) noexcept;

void append_utf8(std::string& text, char32_t point);

// Text of bytes: each invalid unit becomes U+FFFD, as in Rust's from_utf8_lossy and Python's "replace".
std::string utf8_lossy(std::string_view bytes);

// Whether `utf8_lossy(bytes)` ends in U+FFFD: cut inside of a character, spoilt, or that character itself.
bool utf8_ends_open(std::string_view bytes) noexcept;

}  // namespace nvlm
