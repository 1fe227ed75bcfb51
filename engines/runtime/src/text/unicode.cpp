#include "text/unicode.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "text/utf8.hpp"

namespace nvlm {
namespace {

struct Range {
    char32_t first;
    char32_t last;
};

struct MarkRange {
    char32_t first;
    char32_t last;
    std::uint8_t combining_class;
};

struct Decomposition {
    char32_t point;
    std::uint16_t first_part;
    std::uint8_t parts;
};

struct Composition {
    char32_t first;
    char32_t second;
    char32_t composed;
};

#include "text/unicode_tables.inc"

// Hangul syllables follow a rule (Unicode, section 3.12).
constexpr char32_t syllable_base = 0xac00, lead_base = 0x1100, vowel_base = 0x1161, trail_base = 0x11a7;
constexpr char32_t leads = 19, vowels = 21, trails = 28, syllables = leads * vowels * trails;
// Below it no character is a mark or composes with the one before.
constexpr char32_t first_mark = 0x300;

struct Mark {
    char32_t point;
    std::uint8_t combining_class;
};

template <typename Table>
auto find_range(const Table& table, char32_t point) noexcept {
    const auto after =
        std::upper_bound(std::begin(table), std::end(table), point,
                         [](char32_t value, const auto& range) { return value < range.first; });
    const bool inside = after != std::begin(table) && point <= std::prev(after)->last;
    return inside ? std::prev(after) : std::end(table);
}

template <typename Table>
bool contains(const Table& table, char32_t point) noexcept {
    return find_range(table, point) != std::end(table);
}

bool is_space(char32_t point) noexcept {
    return (point >= 0x9 && point <= 0xd) || point == 0x20 || point == 0x85 || point == 0xa0 ||
           point == 0x1680 || (point >= 0x2000 && point <= 0x200a) || point == 0x2028 || point == 0x2029 ||
           point == 0x202f || point == 0x205f || point == 0x3000;
}

CharClass look_up_class(char32_t point) noexcept {
    if (point == U'\r' || point == U'\n') return CharClass::newline;
    if (is_space(point)) return CharClass::space;
    if (contains(letters, point)) return CharClass::letter;
    return contains(numbers, point) ? CharClass::number : CharClass::other;
}

std::array<CharClass, 128> ascii_classes() noexcept {
    std::array<CharClass, 128> classes{};
    for (std::size_t i = 0; i < classes.size(); ++i) classes[i] = look_up_class(static_cast<char32_t>(i));
    return classes;
}

bool is_stable(char32_t point) noexcept {
    return point < first_mark || !contains(unstable, point);
}

std::uint8_t combining_class(char32_t point) noexcept {
    const auto found = find_range(marks, point);
    return found == std::end(marks) ? std::uint8_t{0} : found->combining_class;
}

void decompose(char32_t point, std::vector<Mark>& result) {
    const auto put = [&result](char32_t part) { result.push_back({part, combining_class(part)}); };
    if (point >= syllable_base && point < syllable_base + syllables) {
        const char32_t index = point - syllable_base;
        put(lead_base + index / (vowels * trails));
        put(vowel_base + index % (vowels * trails) / trails);
        if (index % trails != 0) put(trail_base + index % trails);
        return;
    }
    const auto found =
        std::lower_bound(std::begin(decompositions), std::end(decompositions), point,
                         [](const Decomposition& row, char32_t value) { return row.point < value; });
    if (found == std::end(decompositions) || found->point != point) {
        put(point);
        return;
    }
    for (std::size_t i = 0; i < found->parts; ++i) put(decomposed_parts[found->first_part + i]);
}

// The composition of a pair; 0 if there is none.
char32_t compose(char32_t first, char32_t second) noexcept {
    if (first >= lead_base && first < lead_base + leads && second >= vowel_base &&
        second < vowel_base + vowels) {
        return syllable_base + ((first - lead_base) * vowels + (second - vowel_base)) * trails;
    }
    if (first >= syllable_base && first < syllable_base + syllables &&
        (first - syllable_base) % trails == 0 && second > trail_base && second < trail_base + trails) {
        return first + (second - trail_base);
    }
    const auto before = [](const Composition& row, const Composition& wanted) {
        return row.first != wanted.first ? row.first < wanted.first : row.second < wanted.second;
    };
    const Composition wanted{first, second, 0};
    const auto found = std::lower_bound(std::begin(compositions), std::end(compositions), wanted, before);
    const bool same = found != std::end(compositions) && found->first == first && found->second == second;
    return same ? found->composed : 0;
}

void put_marks_in_order(std::vector<Mark>& characters) {
    auto begin = characters.begin();
    while (begin != characters.end()) {
        const auto is_mark = [](const Mark& mark) { return mark.combining_class != 0; };
        begin = std::find_if(begin, characters.end(), is_mark);
        const auto end = std::find_if_not(begin, characters.end(), is_mark);
        std::stable_sort(begin, end, [](const Mark& one, const Mark& other) {
            return one.combining_class < other.combining_class;
        });
        begin = end;
    }
}

// Composes characters whose marks are in order, in place.
void compose_all(std::vector<Mark>& characters) {
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    std::size_t starter = none;
    std::size_t kept = 0;
    for (const Mark next : std::vector<Mark>(characters)) {
        // A mark is blocked by one of its own or a higher class between it and the starter.
        const bool adjacent = starter != none && kept == starter + 1;
        const bool blocked =
            starter == none || (!adjacent && characters[kept - 1].combining_class >= next.combining_class);
        const char32_t composed = blocked ? 0 : compose(characters[starter].point, next.point);
        if (composed != 0) {
            characters[starter].point = composed;
            continue;
        }
        if (next.combining_class == 0) starter = kept;
        characters[kept++] = next;
    }
    characters.resize(kept);
}

// Normalizes what stands between two stable characters, the first of them included.
void append_normalized(std::string& result, std::string_view text, std::vector<Mark>& characters) {
    characters.clear();
    for (std::size_t position = 0; position < text.size();) {
        const Utf8Unit unit = utf8_unit(text, position);
        decompose(unit.point, characters);
        position += unit.length;
    }
    put_marks_in_order(characters);
    compose_all(characters);
    for (const Mark& mark : characters) append_utf8(result, mark.point);
}

}  // namespace

CharClass char_class(char32_t point) noexcept {
    static const std::array<CharClass, 128> ascii = ascii_classes();
    return point < ascii.size() ? ascii[point] : look_up_class(point);
}

std::string nfc(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    std::vector<Mark> characters;
    std::size_t copied = 0;  // what lies before is in the result
    std::size_t stable = 0;  // start of the last stable character
    for (std::size_t position = 0; position < text.size();) {
        Utf8Unit unit = utf8_unit(text, position);
        if (is_stable(unit.point)) {
            stable = position;
            position += unit.length;
            continue;
        }
        while (position < text.size() && !is_stable((unit = utf8_unit(text, position)).point)) {
            position += unit.length;
        }
        result.append(text.substr(copied, stable - copied));
        append_normalized(result, text.substr(stable, position - stable), characters);
        copied = stable = position;
    }
    return result.append(text.substr(copied));
}

}  // namespace nvlm
