#include "engine/answer.hpp"

#include <algorithm>
#include <numeric>

namespace nvlm {

namespace {

// The largest logits, largest first, ties by id.
std::vector<std::pair<std::int64_t, float>> largest(const float* logits, std::size_t vocabulary,
                                                    std::size_t count) {
    std::vector<std::int64_t> ids(vocabulary);
    std::iota(ids.begin(), ids.end(), 0);
    count = std::min(count, vocabulary);
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(count);
    std::partial_sort(ids.begin(), end, ids.end(), [&](std::int64_t a, std::int64_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    std::vector<std::pair<std::int64_t, float>> top;
    for (auto id = ids.begin(); id != end; ++id) top.emplace_back(*id, logits[*id]);
    return top;
}

bool ends_with(const std::string& text, const std::string& part, std::size_t count) {
    return text.size() >= count && text.compare(text.size() - count, count, part, 0, count) == 0;
}

}  // namespace

Answer::Answer(const Request& request, const Tokenizer& tokenizer, std::size_t max_new_tokens)
    : request_(request),
      sampler_(request.sampling),
      stream_(tokenizer),
      end_id_(tokenizer.turn_end_id()),
      max_new_tokens_(max_new_tokens) {}

std::string Answer::accept(const float* logits, std::size_t vocabulary) {
    if (result_.output_ids.empty() && request_.top_logits > 0) {
        result_.first_token_top = largest(logits, vocabulary, request_.top_logits);
    }
    return accept_token(sampler_.choose(logits, vocabulary));
}

std::string Answer::accept_token(std::int64_t token) {
    if (token == end_id_) return end();
    result_.output_ids.push_back(token);
    result_.text += stream_.push(token);
    if (cut_at_stop_string()) return release(result_.text.size());
    if (result_.output_ids.size() == max_new_tokens_) return finish(FinishReason::length);
    return release(result_.text.size() - held_back());
}

std::string Answer::finish(FinishReason reason) {
    result_.finish_reason = reason;
    result_.text += stream_.flush();
    cut_at_stop_string();
    return release(result_.text.size());
}

bool Answer::cut_at_stop_string() {
    std::size_t first = std::string::npos;
    for (const std::string& stop : request_.stop) first = std::min(first, result_.text.find(stop));
    if (first == std::string::npos) return false;
    result_.text.resize(first);
    result_.finish_reason = FinishReason::stop;
    return true;
}

// Length of the longest end of the text that may become a stop string.
std::size_t Answer::held_back() const {
    std::size_t longest = 0;
    for (const std::string& stop : request_.stop) {
        for (std::size_t count = 1; count < stop.size(); ++count) {
            if (ends_with(result_.text, stop, count)) longest = std::max(longest, count);
        }
    }
    return longest;
}

std::string Answer::release(std::size_t end) {
    if (end <= released_) return {};
    std::string piece = result_.text.substr(released_, end - released_);
    released_ = end;
    return piece;
}

}  // namespace nvlm
