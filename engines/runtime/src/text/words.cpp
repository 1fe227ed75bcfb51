#include "text/words.hpp"

#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace nvlm {
namespace {

struct Character {
    char32_t point;
    CharClass kind;
    std::size_t end;
};

Character character_at(std::string_view text, std::size_t position) noexcept {
    const Utf8Unit unit = utf8_unit(text, position);
    return {unit.point, char_class(unit.point), position + unit.length};
}

std::size_t run_end(std::string_view text, std::size_t position, CharClass kind) noexcept {
    while (position < text.size()) {
        const Character next = character_at(text, position);
        if (next.kind != kind) break;
        position = next.end;
    }
    return position;
}

bool is_whitespace(CharClass kind) noexcept {
    return kind == CharClass::space || kind == CharClass::newline;
}

char lower(char c) noexcept {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
}

// Bytes of 's, 't, 're, 've, 'm, 'll or 'd in any case at `start`, or 0. The long s is an s of another case.
std::size_t contraction_length(std::string_view text, std::size_t start) noexcept {
    const std::string_view rest = text.substr(start);
    if (rest.size() < 2 || rest[0] != '\'') return 0;
    const char first = lower(rest[1]);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (rest.size() < 3) return 0;
    if (rest.substr(1, 2) == "\xc5\xbf") return 3;
    const char second = lower(rest[2]);
    const bool found = ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    return found ? 3 : 0;
}

// The last three alternatives, which share a run of white space.
std::size_t whitespace_end(std::string_view text, std::size_t start) noexcept {
    std::size_t position = start;
    std::size_t last = start;           // where the run's last character begins
    std::size_t after_newline = start;  // behind the run's last line break
    while (position < text.size()) {
        const Character next = character_at(text, position);
        if (!is_whitespace(next.kind)) break;
        last = position;
        position = next.end;
        if (next.kind == CharClass::newline) after_newline = position;
    }
    if (after_newline != start) return after_newline;
    // Before other characters the last one is left to them, unless it is alone.
    return position == text.size() || last == start ? position : last;
}

}  // namespace

std::size_t word_end(std::string_view text, std::size_t start) noexcept {
    if (const std::size_t length = contraction_length(text, start); length != 0) return start + length;
    const Character first = character_at(text, start);
    if (first.kind == CharClass::letter) return run_end(text, first.end, CharClass::letter);
    if (first.kind == CharClass::number) return first.end;
    if (first.kind != CharClass::newline && first.end < text.size()) {
        const Character next = character_at(text, first.end);
        if (next.kind == CharClass::letter) return run_end(text, next.end, CharClass::letter);
        if (first.point == U' ' && next.kind == CharClass::other) {
            return run_end(text, run_end(text, next.end, CharClass::other), CharClass::newline);
        }
    }
    if (first.kind == CharClass::other) {
        return run_end(text, run_end(text, first.end, CharClass::other), CharClass::newline);
    }
    return whitespace_end(text, start);
}

}  // namespace nvlm
