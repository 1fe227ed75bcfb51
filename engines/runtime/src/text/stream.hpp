// Decodes one answer token by token into whole characters, as StreamDecoder in Python.

#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.hpp"

namespace nvlm {

// The pieces join to the tokenizer's `decode` of all ids. A character whose bytes spread over several tokens
// comes out whole, with its last token.
class TextStream {
  public:
    explicit TextStream(Tokenizer tokenizer, bool skip_special = true);

    // Adds one token; returns the text that is complete by now, often "" or a word.
    std::string push(std::int64_t id);
    // Returns what is left: nothing, or U+FFFD for a character that was never finished.
    std::string flush();

  private:
    Tokenizer tokenizer_;
    bool skip_special_;
    std::string pending_;
};

}  // namespace nvlm
