#include "bundle/mismatch.hpp"

#include <algorithm>

namespace nvlm {

namespace {

constexpr std::size_t shown_fields = 8;
constexpr std::size_t shown_bytes = 120;
const char* const absent = "nothing";

struct Leaf {
    std::string field;
    std::string text;
};

std::string text_of(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Empty objects and lists are fields, too.
void collect(const Json& value, const std::string& field, std::vector<Leaf>& leaves) {
    if (!value.is_structured() || value.empty()) {
        leaves.push_back({field, text_of(value)});
        return;
    }
    const std::string prefix = field.empty() ? "" : field + ".";
    std::size_t index = 0;
    for (const auto& [key, part] : value.items()) {
        collect(part, prefix + (value.is_array() ? std::to_string(index) : key), leaves);
        ++index;
    }
}

const std::string* find(const std::vector<Leaf>& leaves, const std::string& field) {
    const auto found =
        std::find_if(leaves.begin(), leaves.end(), [&](const Leaf& leaf) { return leaf.field == field; });
    return found == leaves.end() ? nullptr : &found->text;
}

std::string shown(const std::string& text) {
    if (text.size() <= shown_bytes) return text;
    std::size_t end = shown_bytes - 3;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80U) --end;
    return text.substr(0, end) + "...";
}

}  // namespace

Mismatches differences(const Json& value, const Json& expected, const std::string& witness,
                       const std::string& field) {
    std::vector<Leaf> ours, theirs;
    collect(value, field, ours);
    collect(expected, field, theirs);
    Mismatches found;
    for (const Leaf& leaf : ours) {
        const std::string* other = find(theirs, leaf.field);
        if (other == nullptr || *other != leaf.text) {
            found.push_back({leaf.field, leaf.text, witness, other == nullptr ? absent : *other});
        }
    }
    for (const Leaf& leaf : theirs) {
        if (find(ours, leaf.field) == nullptr) found.push_back({leaf.field, absent, witness, leaf.text});
    }
    return found;
}

Mismatches expect(const Json& section, const Json& wanted, const std::string& witness,
                  const std::string& prefix, bool known) {
    Mismatches found;
    for (const auto& [key, expected] : wanted.items()) {
        if (!section.contains(key)) {
            if (!known) found.push_back({prefix + key, absent, witness, text_of(expected)});
            continue;
        }
        for (Mismatch& mismatch : differences(section.at(key), expected, witness, prefix + key)) {
            found.push_back(std::move(mismatch));
        }
    }
    return found;
}

void refuse(const Mismatches& found, const std::string& where, const std::string& hint, Status status) {
    if (found.empty()) return;
    std::string text = where + ": ";
    for (std::size_t i = 0; i < found.size() && i < shown_fields; ++i) {
        const Mismatch& each = found[i];
        if (i > 0) text += "; ";
        text +=
            each.field + " is " + shown(each.value) + ", and " + each.witness + " " + shown(each.expected);
    }
    if (found.size() > shown_fields) text += "; and " + std::to_string(found.size() - shown_fields) + " more";
    throw Error(status, text, hint);
}

}  // namespace nvlm
