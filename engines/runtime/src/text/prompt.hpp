// The prompt contract: a question or a chat, and the tiles of its images, become token ids, as
// nvlm_deploy.preprocess.prompt.
//
// The template is the released `chat`: every turn is `<|im_start|>role\ntext<|im_end|>`, and an image is
// `<Image>`, for each tile its tag and its placeholders, `</Image>`.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/messages.hpp"
#include "text/tokenizer.hpp"

namespace nvlm {

enum class Variant { d, x, h };

// `hf` tokenizes as the released Hugging Face code: the whole string at once, no newline after `<|im_end|>`.
// `megatron` tokenizes as in training: the first tag of an image apart from `<Image>`, a newline after every
// `<|im_end|>`.
enum class TokenizationMode { hf, megatron };

struct PromptSettings {
    Variant variant = Variant::d;
    TokenizationMode mode = TokenizationMode::hf;
    std::int64_t visual_tokens_per_tile = 0;
    // Rows of the model's embedding.
    std::int64_t vocab_size = 0;
    std::string thumbnail_tag;
};

// Throws Error (usage): the mode is neither "hf" nor "megatron".
TokenizationMode tokenization_mode(std::string_view name);

// Where the tiles of a prompt for NVLM-X or NVLM-H go, and what its text sees of them.
struct CrossPrompt {
    // Places among the request's tiles of the C that cross-attention attends to.
    std::vector<std::int64_t> tiles;
    // The other tiles, whose visual tokens stand in the sequence.
    std::vector<std::int64_t> sequence_tiles;
    // NVLM-H: for each of the C tiles the ids of the tag that stands before its visual tokens among the keys.
    std::vector<std::vector<std::int64_t>> tags;
    // For each token of the prompt: it attends to tiles [first, second) of the C.
    std::vector<std::pair<std::int64_t, std::int64_t>> visible;
};

struct Prompt {
    std::vector<std::int64_t> input_ids;
    // Ascending: where `input_ids` holds an image placeholder.
    std::vector<std::int64_t> visual_positions;
    // The expanded prompt, to be read by people.
    std::string text;
    // Empty for NVLM-D.
    std::optional<CrossPrompt> cross;
};

// Builds prompts for one model; safe to share between threads.
class PromptBuilder {
  public:
    // Throws Error (failure): the tokenizer has more tokens than the embedding has rows.
    PromptBuilder(Tokenizer tokenizer, PromptSettings settings);

    // A plain prompt: each `<image>` is the place of an image (without any, images go first, each followed by
    // a newline), and special tokens act, except for the placeholder. `tiles_per_image` counts the tiles of
    // each image, thumbnail included. Throws Error (usage): another number of images, an image without tiles,
    // or text that is not valid UTF-8.
    Prompt build(std::string_view prompt, const std::vector<std::int64_t>& tiles_per_image) const;

    // A chat. An image part stands for an image and a newline; one that follows it is not doubled. Throws as
    // above, and as `check_turns`.
    Prompt build(const std::vector<Turn>& turns, const std::vector<std::int64_t>& tiles_per_image) const;

    const Tokenizer& tokenizer() const noexcept { return tokenizer_; }

  private:
    Tokenizer tokenizer_;
    PromptSettings settings_;
};

}  // namespace nvlm
