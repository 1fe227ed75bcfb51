// A prompt in the making: text is collected and encoded jointly up to the next
// special token.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/prompt.hpp"

namespace nvlm {

class PromptAssembly {
  public:
    PromptAssembly(const Tokenizer& tokenizer, const PromptSettings& settings)
        : tokenizer_(tokenizer), settings_(settings) {}
    PromptAssembly(const PromptAssembly&) = delete;
    PromptAssembly& operator=(const PromptAssembly&) = delete;
    virtual ~PromptAssembly() = default;

    void open_turn(std::string_view role);
    void close_turn();
    // Text that is only text.
    void add_text(std::string_view text) { pending_.append(text); }
    // Text whose special tokens act, except for the image placeholder.
    void add_marked_text(std::string_view text);
    // Tags count from 1 in every image.
    virtual void add_image(std::int64_t tiles);
    // The tags that stand in the text for an image of so many tiles, thumbnail
    // included.
    virtual std::vector<std::string> written_tags(std::int64_t tiles) const;
    virtual Prompt finish();

  protected:
    void add_special(std::string_view token, std::int64_t id);
    // Holds the places of one tile's visual tokens.
    void add_placeholders();
    void encode_pending();
    bool is_megatron() const noexcept { return settings_.mode == TokenizationMode::megatron; }

    const Tokenizer& tokenizer_;
    const PromptSettings& settings_;
    Prompt prompt_;

  private:
    std::string pending_;
};

// The assembly of the settings' variant. Both arguments must outlive it.
std::unique_ptr<PromptAssembly> make_assembly(const Tokenizer& tokenizer, const PromptSettings& settings);

}  // namespace nvlm
