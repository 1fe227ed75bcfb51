#include "text/utf8.hpp"

#include <cstdint>
#include <cstring>

namespace nvlm {
namespace {

constexpr char32_t replacement = 0xfffd;

struct Lead {
    std::size_t length;
    // Bounds of the second byte: they exclude overlong forms, surrogates and what lies beyond U+10FFFF.
    unsigned low;
    unsigned high;
};

constexpr Lead lead_of(unsigned byte) noexcept {
    if (byte >= 0xc2 && byte <= 0xdf) return {2, 0x80, 0xbf};
    if (byte == 0xe0) return {3, 0xa0, 0xbf};
    if (byte == 0xed) return {3, 0x80, 0x9f};
    if (byte >= 0xe1 && byte <= 0xef) return {3, 0x80, 0xbf};
    if (byte == 0xf0) return {4, 0x90, 0xbf};
    if (byte >= 0xf1 && byte <= 0xf3) return {4, 0x80, 0xbf};
    if (byte == 0xf4) return {4, 0x80, 0x8f};
    return {0, 0, 0};
}

unsigned byte_at(std::string_view bytes, std::size_t position) noexcept {
    return static_cast<unsigned char>(bytes[position]);
}

}  // namespace

Utf8Unit utf8_unit(std::string_view bytes, std::size_t position) noexcept {
    const unsigned first = byte_at(bytes, position);
    if (first < 0x80) return {first, 1, true};
    const Lead lead = lead_of(first);
    if (lead.length == 0) return {replacement, 1, false};
    char32_t point = first & (0x7fU >> lead.length);
    for (std::size_t i = 1; i < lead.length; ++i) {
        const unsigned low = i == 1 ? lead.low : 0x80;
        const unsigned high = i == 1 ? lead.high : 0xbf;
        if (position + i >= bytes.size()) return {replacement, i, false};
        const unsigned next = byte_at(bytes, position + i);
        if (next < low || next > high) return {replacement, i, false};
        point = (point << 6U) | (next & 0x3fU);
    }
    return {point, lead.length, true};
}

std::size_t utf8_valid_length(std::string_view bytes) noexcept {
    std::size_t position = 0;
    while (position < bytes.size()) {
        std::uint64_t eight = 0;
        if (position + sizeof(eight) <= bytes.size()) {
            std::memcpy(&eight, bytes.data() + position, sizeof(eight));
            if ((eight & 0x8080808080808080U) == 0) {
                position += sizeof(eight);
                continue;
            }
        }
        const Utf8Unit unit = utf8_unit(bytes, position);
        if (!unit.valid) return position;
        position += unit.length;
    }
    return position;
}

void append_utf8(std::string& text, char32_t point) {
    const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (point < 0x80) {
        put(point);
    } else if (point < 0x800) {
        put(0xc0U | (point >> 6U));
        put(0x80U | (point & 0x3fU));
    } else if (point < 0x10000) {
        put(0xe0U | (point >> 12U));
        put(0x80U | ((point >> 6U) & 0x3fU));
        put(0x80U | (point & 0x3fU));
    } else {
        put(0xf0U | (point >> 18U));
        put(0x80U | ((point >> 12U) & 0x3fU));
        put(0x80U | ((point >> 6U) & 0x3fU));
        put(0x80U | (point & 0x3fU));
    }
}

std::string utf8_lossy(std::string_view bytes) {
    std::string text;
    text.reserve(bytes.size());
    while (!bytes.empty()) {
        const std::size_t valid = utf8_valid_length(bytes);
        text.append(bytes.substr(0, valid));
        bytes.remove_prefix(valid);
        if (!bytes.empty()) {
            append_utf8(text, replacement);
            bytes.remove_prefix(utf8_unit(bytes, 0).length);
        }
    }
    return text;
}

bool utf8_ends_open(std::string_view bytes) noexcept {
    if (bytes.empty()) return false;
    // Reading starts anew at every byte that continues nothing, whatever stands before it.
    std::size_t start = bytes.size() - 1;
    while (start > 0 && bytes.size() - start < 4 && (byte_at(bytes, start) & 0xc0U) == 0x80) --start;
    const Utf8Unit unit = utf8_unit(bytes, start);
    return !unit.valid || unit.point == replacement || start + unit.length != bytes.size();
}

}  // namespace nvlm
