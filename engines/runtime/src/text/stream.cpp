#include "text/stream.hpp"

#include <utility>

#include "text/utf8.hpp"

namespace nvlm {

TextStream::TextStream(Tokenizer tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string TextStream::push(std::int64_t id) {
    if (!skip_special_ || !tokenizer_.is_special(id)) pending_.append(tokenizer_.bytes_of(id));
    return utf8_ends_open(pending_) ? std::string() : flush();
}

std::string TextStream::flush() {
    return utf8_lossy(std::exchange(pending_, {}));
}

}  // namespace nvlm
