// Byte-pair encoding of one word: the pair of the lowest rank is merged until no pair has one.

#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer_file.hpp"

namespace nvlm {

class Bpe {
  public:
    // Buffers that are kept between words.
    struct Scratch {
        // A token of the word so far; the places of its neighbors, or -1.
        struct Symbol {
            std::uint32_t id;
            std::int32_t previous;
            std::int32_t next;
            bool merged_away;
        };
        // A merge that may be made: of the symbol at `place` with the next one, into the token `id`.
        struct Candidate {
            std::uint32_t rank;
            std::int32_t place;
            std::uint32_t id;
        };
        std::vector<Symbol> symbols;
        std::vector<Candidate> heap;
    };

    Bpe(const std::vector<Merge>& merges, const std::array<std::int64_t, 256>& byte_ids);

    // Appends the ids of the tokens of `word`, which must be shorter than 2^31 bytes.
    void encode(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const;

  private:
    struct Slot {
        std::uint64_t pair;
        std::uint32_t rank;
        std::uint32_t id;
    };

    // The merge of a pair, or nullptr.
    const Slot* find(std::uint32_t left, std::uint32_t right) const noexcept;
    void encode_short(std::string_view word, std::vector<std::int64_t>& ids) const;
    void encode_long(std::string_view word, Scratch& scratch, std::vector<std::int64_t>& ids) const;
    void push_candidate(Scratch& scratch, std::int32_t place) const;
    void merge_best(Scratch& scratch) const;

    std::array<std::int64_t, 256> byte_ids_;
    // Open addressing; the length is a power of two.
    std::vector<Slot> slots_;
    unsigned shift_;
};

}  // namespace nvlm
