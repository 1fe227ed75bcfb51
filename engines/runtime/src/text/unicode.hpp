// The classes of characters that pre-tokenization knows, and the normal form NFC.

#pragma once

#include <string>
#include <string_view>

namespace nvlm {

enum class CharClass : unsigned char {
    letter,   // \p{L}
    number,   // \p{N}
    newline,  // \r and \n
    space,    // the rest of \s
    other,
};

// As the `tokenizers` library's regular expressions see it, whatever Unicode's version is elsewhere.
CharClass char_class(char32_t point) noexcept;

// The NFC of valid UTF-8 as that library's normalizer makes it.
std::string nfc(std::string_view text);

}  // namespace nvlm
