#include "text/vocabulary.hpp"

#include <cstring>
#include <utility>

namespace nvlm {
namespace {

constexpr std::size_t first_slots = std::size_t{1} << 14U;
constexpr std::uint64_t factor = 0x9e3779b97f4a7c15U;

std::uint32_t hash_of(std::string_view token) noexcept {
    std::uint64_t hash = token.size() * factor;
    while (!token.empty()) {
        std::uint64_t word = 0;
        const std::size_t length = token.size() < sizeof(word) ? token.size() : sizeof(word);
        std::memcpy(&word, token.data(), length);
        hash = (hash ^ word) * factor;
        hash ^= hash >> 32U;
        token.remove_prefix(length);
    }
    return static_cast<std::uint32_t>(hash);
}

}  // namespace

Vocabulary::Vocabulary() : slots_(first_slots) {}

std::size_t Vocabulary::slot_of(std::string_view token, std::uint32_t hash) const noexcept {
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot].number != 0) {
        if (slots_[slot].hash == hash && text(entries_[slots_[slot].number - 1]) == token) break;
        slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
}

bool Vocabulary::insert(std::string_view token, std::uint32_t id) {
    const std::uint32_t hash = hash_of(token);
    const std::size_t slot = slot_of(token, hash);
    if (slots_[slot].number != 0) return false;
    const auto start = static_cast<std::uint32_t>(texts_.size());
    entries_.push_back({start, static_cast<std::uint32_t>(token.size()), id});
    texts_.append(token);
    slots_[slot] = {hash, static_cast<std::uint32_t>(entries_.size())};
    if (entries_.size() * 4 > slots_.size() * 3) grow();
    return true;
}

std::int64_t Vocabulary::find(std::string_view token) const noexcept {
    const std::uint32_t number = slots_[slot_of(token, hash_of(token))].number;
    return number == 0 ? absent : std::int64_t{entries_[number - 1].id};
}

void Vocabulary::grow() {
    const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2));
    for (const Slot& moved : old) {
        if (moved.number == 0) continue;
        std::size_t slot = moved.hash & (slots_.size() - 1);
        while (slots_[slot].number != 0) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = moved;
    }
}

}  // namespace nvlm
