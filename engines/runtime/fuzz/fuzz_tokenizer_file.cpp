// libFuzzer: any bytes as a tokenizer.json are read or refused, and what was read can encode.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "error.hpp"
#include "text/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const nvlm::Tokenizer tokenizer =
            nvlm::Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "fuzz");
        const auto ids = tokenizer.encode("What's the <|im_end|> total?\r\n e\u0301 \u00c5 1234");
        static_cast<void>(tokenizer.decode(ids, false));
    } catch (const nvlm::Error&) {
        // Refused with a sentence: what malformed files are for.
    }
    return 0;
}
