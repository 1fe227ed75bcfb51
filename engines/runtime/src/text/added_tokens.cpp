#include "text/added_tokens.hpp"

#include <algorithm>
#include <utility>

namespace nvlm {

void AddedTokenFinder::add(std::string text, std::int64_t id, bool special) {
    if (text.empty()) return;
    std::vector<Token>& same = tokens_[static_cast<unsigned char>(text.front())];
    if (same.empty()) first_bytes_.push_back(text.front());
    const auto place = std::find_if(same.begin(), same.end(),
                                    [&text](const Token& token) { return token.text.size() < text.size(); });
    same.insert(place, {std::move(text), id, special});
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::find(std::string_view text,
                                                              std::size_t start) const {
    const auto next = [this, text](std::size_t from) {
        // memchr is much faster where, as usual, all begin with the same byte.
        return first_bytes_.size() == 1 ? text.find(first_bytes_.front(), from)
                                        : text.find_first_of(first_bytes_, from);
    };
    for (std::size_t place = next(start); place != std::string_view::npos; place = next(place + 1)) {
        for (const Token& token : tokens_[static_cast<unsigned char>(text[place])]) {
            if (text.compare(place, token.text.size(), token.text) == 0) {
                return Match{place, token.text.size(), token.id, token.special};
            }
        }
    }
    return std::nullopt;
}

}  // namespace nvlm
