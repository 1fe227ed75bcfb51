#include "text/bpe.hpp"

#include <algorithm>
#include <cstddef>

namespace nvlm {
namespace {

constexpr std::uint64_t empty_pair = ~std::uint64_t{0};
constexpr std::uint64_t factor = 0x9e3779b97f4a7c15U;
// Up to here looking through all pairs is faster than keeping them in a heap.
constexpr std::size_t short_word = 24;

std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) noexcept {
    return (std::uint64_t{left} << 32U) | right;
}

// Later means worse: the heap's top is the lowest rank, and of equal ones the leftmost.
bool is_later(const Bpe::Scratch::Candidate& one, const Bpe::Scratch::Candidate& other) noexcept {
    return one.rank != other.rank ? one.rank > other.rank : one.place > other.place;
}

}  // namespace

Bpe::Bpe(const std::vector<Merge>& merges, const std::array<std::int64_t, 256>& byte_ids)
    : byte_ids_(byte_ids), shift_(64 - 4) {
    while ((std::size_t{1} << (64 - shift_)) < merges.size() * 2) --shift_;
    slots_.assign(std::size_t{1} << (64 - shift_), Slot{empty_pair, 0, 0});
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        const std::uint64_t pair = pair_of(merges[rank].left, merges[rank].right);
        std::size_t slot = (pair * factor) >> shift_;
        while (slots_[slot].pair != empty_pair && slots_[slot].pair != pair) {
            slot = (slot + 1) & (slots_.size() - 1);
        }
        slots_[slot] = {pair, static_cast<std::uint32_t>(rank), merges[rank].merged};
    }
}

const Bpe::Slot* Bpe::find(std::uint32_t left, std::uint32_t right) const noexcept {
    const std::uint64_t pair = pair_of(left, right);
    std::size_t slot = (pair * factor) >> shift_;
    while (slots_[slot].pair != pair) {
        if (slots_[slot].pair == empty_pair) return nullptr;
        slot = (slot + 1) & (slots_.size() - 1);
    }
    return &slots_[slot];
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const {
    if (word.size() <= short_word) {
        encode_short(word, ids);
    } else {
        encode_long(word, scratch, ids);
    }
}

void Bpe::encode_short(std::string_view word, std::vector<std::int64_t>& ids) const {
    std::array<std::uint32_t, short_word> symbols{};
    std::array<const Slot*, short_word> merges{};  // of each symbol with the next one
    std::size_t count = 0;
    for (const char c : word) {
        const std::int64_t id = byte_ids_[static_cast<unsigned char>(c)];
        if (id >= 0) symbols[count++] = static_cast<std::uint32_t>(id);
    }
    for (std::size_t i = 0; i + 1 < count; ++i) merges[i] = find(symbols[i], symbols[i + 1]);
    while (count > 1) {
        std::size_t best = count;
        for (std::size_t i = 0; i + 1 < count; ++i) {
            if (merges[i] && (best == count || merges[i]->rank < merges[best]->rank)) best = i;
        }
        if (best == count) break;
        symbols[best] = merges[best]->id;
        --count;
        for (std::size_t i = best + 1; i < count; ++i) {
            symbols[i] = symbols[i + 1];
            merges[i] = merges[i + 1];
        }
        if (best > 0) merges[best - 1] = find(symbols[best - 1], symbols[best]);
        if (best + 1 < count) merges[best] = find(symbols[best], symbols[best + 1]);
    }
    ids.insert(ids.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(count));
}

void Bpe::encode_long(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const {
    std::vector<Scratch::Symbol>& symbols = scratch.symbols;
    symbols.clear();
    scratch.heap.clear();
    for (const char c : word) {
        const std::int64_t id = byte_ids_[static_cast<unsigned char>(c)];
        if (id < 0) continue;
        const auto place = static_cast<std::int32_t>(symbols.size());
        symbols.push_back({static_cast<std::uint32_t>(id), place - 1, place + 1, false});
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;
    for (std::size_t i = 0; i < symbols.size(); ++i) push_candidate(scratch, static_cast<std::int32_t>(i));
    while (!scratch.heap.empty()) merge_best(scratch);
    for (const Scratch::Symbol& symbol : symbols) {
        if (!symbol.merged_away) ids.push_back(symbol.id);
    }
}

// Adds the merge of the symbol at `place` with the one behind it, if there is one.
void Bpe::push_candidate(Scratch& scratch, std::int32_t place) const {
    if (place < 0) return;
    const Scratch::Symbol& symbol = scratch.symbols[static_cast<std::size_t>(place)];
    if (symbol.next < 0) return;
    const Slot* const slot = find(symbol.id, scratch.symbols[static_cast<std::size_t>(symbol.next)].id);
    if (slot == nullptr) return;
    scratch.heap.push_back({slot->rank, place, slot->id});
    std::push_heap(scratch.heap.begin(), scratch.heap.end(), is_later);
}

void Bpe::merge_best(Scratch& scratch) const {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), is_later);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = scratch.symbols[static_cast<std::size_t>(best.place)];
    if (left.merged_away || left.next < 0) return;
    Scratch::Symbol& right = scratch.symbols[static_cast<std::size_t>(left.next)];
    // One of the two may have become another token since.
    const Slot* const slot = find(left.id, right.id);
    if (slot == nullptr || slot->id != best.id) return;
    left.id = best.id;
    left.next = right.next;
    right.merged_away = true;
    if (right.next >= 0) scratch.symbols[static_cast<std::size_t>(right.next)].previous = best.place;
    push_candidate(scratch, left.previous);
    push_candidate(scratch, best.place);
}

}  // namespace nvlm
