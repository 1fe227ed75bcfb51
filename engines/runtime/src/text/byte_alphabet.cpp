#include "text/byte_alphabet.hpp"

#include <cstddef>

#include "text/utf8.hpp"

namespace nvlm {
namespace {

// The characters lie below this; the bytes without a printable one of their own follow 0xff in order.
constexpr std::size_t character_end = 256 + 68;
constexpr int no_byte = -1;

constexpr bool is_own_character(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr std::array<int, character_end> make_bytes() {
    std::array<int, character_end> bytes{};
    for (auto& byte : bytes) byte = no_byte;
    std::size_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
        bytes[is_own_character(byte) ? byte : next++] = static_cast<int>(byte);
    }
    return bytes;
}

constexpr std::array<int, character_end> bytes_of_characters = make_bytes();

}  // namespace

const std::array<std::string, 256>& byte_characters() {
    static const std::array<std::string, 256> characters = [] {
        std::array<std::string, 256> result;
        for (std::size_t point = 0; point < character_end; ++point) {
            const int byte = bytes_of_characters[point];
            if (byte != no_byte)
                append_utf8(result[static_cast<std::size_t>(byte)], static_cast<char32_t>(point));
        }
        return result;
    }();
    return characters;
}

std::string token_bytes(std::string_view token) {
    std::string bytes;
    for (std::size_t position = 0; position < token.size();) {
        const Utf8Unit unit = utf8_unit(token, position);
        if (unit.point >= character_end || bytes_of_characters[unit.point] == no_byte)
            return std::string(token);
        bytes.push_back(static_cast<char>(bytes_of_characters[unit.point]));
        position += unit.length;
    }
    return bytes;
}

}  // namespace nvlm
