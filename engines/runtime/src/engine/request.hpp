// What an engine is asked, and what it answers.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/timings.hpp"
#include "image/decode.hpp"
#include "image/tiles.hpp"
#include "sampling/sampler.hpp"

namespace nvlm {

// A file by its path, the bytes of a file, or RGB pixels; the first of these that is given.
struct ImageInput {
    std::string path;
    Bytes file;
    const std::uint8_t* pixels = nullptr;
    std::int64_t width = 0;
    std::int64_t height = 0;
    std::size_t stride = 0;

    // Throws Error; errors call an image that has no path `label`.
    Image decode(const std::string& label) const;
};

// `prompt` is plain text, in which `<image>` marks an image's place, or with `is_chat` a JSON list of
// messages. `on_text` is called with pieces of the answer as they become certain.
struct Request {
    std::string prompt;
    bool is_chat = false;
    std::vector<ImageInput> images;
    std::size_t max_new_tokens = 1024;
    std::vector<std::string> stop;
    SamplingParameters sampling;
    std::size_t top_logits = 0;
    std::function<void(std::string_view)> on_text;

    // Throws Error (usage): a setting that makes no sense.
    void check() const;
};

enum class FinishReason { none, stop, length };

struct ImageReport {
    Grid grid;
    std::vector<std::uint32_t> crc32;
};

// `timings`: milliseconds of `tile`, `tokenize`, `vision`, `prefill`, `first_token` (all of these together),
// `decode`, `per_token`, `total`. `output_ids` has no end-of-turn token.
struct Result {
    std::string text;
    std::vector<std::int64_t> input_ids;
    std::vector<std::int64_t> output_ids;
    FinishReason finish_reason = FinishReason::none;
    std::vector<ImageReport> images;
    Timings timings;
    std::vector<std::pair<std::int64_t, float>> first_token_top;

    // The keys of `nvlm-build run --json`; `indent` as in Python's json.
    std::string to_json(int indent) const;
};

}  // namespace nvlm
