// The 256 characters that byte-level vocabularies write bytes with: "Ġ" is a space.

#pragma once

#include <array>
#include <string>
#include <string_view>

namespace nvlm {

// The character of each byte, in UTF-8.
const std::array<std::string, 256>& byte_characters();

// The bytes of a token as a vocabulary writes it. A token with any other character stands for its own UTF-8,
// as in the `tokenizers` library.
std::string token_bytes(std::string_view token);

}  // namespace nvlm
