// One answer in the making: tokens, text, stop strings.

#pragma once

#include <cstddef>
#include <string>

#include "engine/request.hpp"
#include "text/stream.hpp"

namespace nvlm {

// Collects tokens and releases text that no stop string can still take back.
class Answer {
  public:
    Answer(const Request& request, const Tokenizer& tokenizer, std::size_t max_new_tokens);

    // Choose the next token from its logits; return the text that is now certain.
    std::string accept(const float* logits, std::size_t vocabulary);
    // Take a token that was chosen elsewhere; return the text that is now certain.
    std::string accept_token(std::int64_t token);
    // End the answer as the end of the turn does; return the rest of its text.
    std::string end() { return finish(FinishReason::stop); }
    std::int64_t end_id() const noexcept { return end_id_; }
    bool finished() const noexcept { return result_.finish_reason != FinishReason::none; }
    std::int64_t last_id() const { return result_.output_ids.back(); }
    Result& result() noexcept { return result_; }

  private:
    std::string finish(FinishReason reason);
    bool cut_at_stop_string();
    std::size_t held_back() const;
    std::string release(std::size_t end);

    const Request& request_;
    Sampler sampler_;
    TextStream stream_;
    std::int64_t end_id_;
    std::size_t max_new_tokens_;
    std::size_t released_ = 0;
    Result result_;
};

}  // namespace nvlm
