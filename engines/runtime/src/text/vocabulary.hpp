// Tokens by their text, while a tokenizer is read.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nvlm {

class Vocabulary {
  public:
    static constexpr std::int64_t absent = -1;

    Vocabulary();

    // False if the token is there already. All tokens together must have less than 4 GiB.
    bool insert(std::string_view token, std::uint32_t id);
    // The token's id, or `absent`.
    std::int64_t find(std::string_view token) const noexcept;
    std::size_t size() const noexcept { return entries_.size(); }

    // Calls visit(token, id) for every token, in the order of insertion.
    template <typename Visit>
    void for_each(Visit&& visit) const {
        for (const Entry& entry : entries_) visit(text(entry), entry.id);
    }

  private:
    struct Entry {
        std::uint32_t start;
        std::uint32_t length;
        std::uint32_t id;
    };
    // Half of the hash tells most tokens apart without a look at the entry.
    struct Slot {
        std::uint32_t hash;
        std::uint32_t number;  // of the entry, plus one; 0 in an empty slot
    };

    std::string_view text(const Entry& entry) const noexcept {
        return std::string_view(texts_).substr(entry.start, entry.length);
    }
    std::size_t slot_of(std::string_view token, std::uint32_t hash) const noexcept;
    void grow();

    std::string texts_;
    std::vector<Entry> entries_;
    // Open addressing; the length is a power of two.
    std::vector<Slot> slots_;
};

}  // namespace nvlm
