// libFuzzer: any bytes as a text. Its tokens decode to its normal form, a stream gives what decoding gives,
// and the text serves as a prompt and as messages. The tokenizer is NVLM_FUZZ_TOKENIZER's, or the example's.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "text/prompt.hpp"
#include "text/stream.hpp"
#include "text/tokenizer.hpp"
#include "text/unicode.hpp"

namespace {

const nvlm::Tokenizer& tokenizer() {
    static const nvlm::Tokenizer loaded = [] {
        const char* const path = std::getenv("NVLM_FUZZ_TOKENIZER");
        return nvlm::Tokenizer::from_file(path != nullptr ? path : NVLM_EXAMPLE_TOKENIZER);
    }();
    return loaded;
}

void require(bool holds) {
    if (!holds) std::abort();
}

void try_text(std::string_view text) {
    require(tokenizer().decode_bytes(tokenizer().encode_text(text), false) == nvlm::nfc(text));
    const nvlm::PromptBuilder prompts(tokenizer(), {nvlm::Variant::x, nvlm::TokenizationMode::megatron, 4,
                                                    1 << 20, "<tile_global_thumbnail>"});
    static_cast<void>(prompts.build(text, {2, 1}));
}

void try_messages(std::string_view text) {
    const std::vector<nvlm::Turn> turns = nvlm::parse_messages(text);
    static_cast<void>(nvlm::gather_images(turns, 0));
}

void try_stream(const std::uint8_t* data, std::size_t size) {
    const std::vector<std::int64_t> ids(data, data + size);
    nvlm::TextStream stream(tokenizer());
    std::string joined;
    for (const std::int64_t id : ids) joined += stream.push(id);
    require(joined + stream.flush() == tokenizer().decode(ids, true));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const auto attempt : {try_text, try_messages}) {
        try {
            attempt(text);
        } catch (const nvlm::Error&) {
            // No text, or no messages.
        }
    }
    try_stream(data, size);
    return 0;
}
