// Finds added tokens in a text: the leftmost, and of those that begin there the longest.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nvlm {

class AddedTokenFinder {
  public:
    struct Match {
        std::size_t start;
        std::size_t length;
        std::int64_t id;
        bool special;
    };

    void add(std::string text, std::int64_t id, bool special);

    // The first match at or behind `start`.
    std::optional<Match> find(std::string_view text, std::size_t start) const;

  private:
    struct Token {
        std::string text;
        std::int64_t id;
        bool special;
    };

    // By first byte, longest first.
    std::array<std::vector<Token>, 256> tokens_;
    std::string first_bytes_;
};

}  // namespace nvlm
