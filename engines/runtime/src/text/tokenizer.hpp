// The tokenizer of a bundle: text to ids, ids to text, as nvlm_deploy.preprocess.tokenizer.
//
//     const nvlm::Tokenizer tokenizer = nvlm::Tokenizer::from_file("bundle/tokenizer.json");
//     const std::vector<std::int64_t> ids = tokenizer.encode("What is the total?");

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nvlm {

inline constexpr std::string_view turn_start = "<|im_start|>";
inline constexpr std::string_view turn_end = "<|im_end|>";
inline constexpr std::string_view image_token = "<|vision_pad|>";

// A stretch of a text: a special token, or what stands between two.
struct TextPiece {
    std::string_view text;
    bool special;
};

// Byte-level BPE with the special tokens of the chat template. Copies share their tables; every const method
// may be called by several threads at once.
class Tokenizer {
  public:
    // Throws Error (failure): the file cannot be read, is no tokenizer, lacks a token of the chat template,
    // or has a setting that is not implemented.
    static Tokenizer from_file(const std::filesystem::path& path);
    // As `from_file`, of a file's contents; `source` is named in errors.
    static Tokenizer from_json(std::string_view json, const std::string& source = "tokenizer.json");

    // Special tokens in the text become their ids. Throws Error (usage): the text is not valid UTF-8.
    std::vector<std::int64_t> encode(std::string_view utf8) const;
    // All text is text: `<|im_end|>` and the like become the tokens of their characters. Throws as `encode`.
    std::vector<std::int64_t> encode_text(std::string_view utf8) const;
    // The pieces join to `utf8` and are views of it.
    std::vector<TextPiece> split_special(std::string_view utf8) const;

    // The bytes of all tokens, which may be cut inside of a character. Ids without a token give nothing.
    std::string decode_bytes(const std::vector<std::int64_t>& ids, bool skip_special) const;
    // The text of all tokens; bytes that are no valid UTF-8 become U+FFFD.
    std::string decode(const std::vector<std::int64_t>& ids, bool skip_special) const;
    // The bytes of one token; empty for an id without one. The view lives as long as the tokenizer.
    std::string_view bytes_of(std::int64_t id) const noexcept;
    bool is_special(std::int64_t id) const noexcept;

    // The id of a special token by its text. Throws Error (failure): there is none.
    std::int64_t special_id(std::string_view token) const;
    std::int64_t turn_start_id() const noexcept;
    // The id that ends an answer.
    std::int64_t turn_end_id() const noexcept;
    std::int64_t image_token_id() const noexcept;
    // Number of tokens, special ones included. The embedding may have more rows.
    std::size_t size() const noexcept;

  private:
    struct Tables;

    explicit Tokenizer(std::shared_ptr<const Tables> tables);

    std::shared_ptr<const Tables> tables_;
};

}  // namespace nvlm
