#include "text/prompt_assembly.hpp"

namespace nvlm {
namespace {

std::string tag_of(std::int64_t tile) {
    return "<tile_" + std::to_string(tile) + ">";
}

// Keeps account of which tiles go to cross-attention and which of them each
// token sees.
class CrossAssembly : public PromptAssembly {
  public:
    using PromptAssembly::PromptAssembly;

    Prompt finish() override {
        look_at(sees_);
        prompt_.cross = std::move(cross_);
        return PromptAssembly::finish();
    }

  protected:
    // What is added from now on sees the tiles [first, second) of those in
    // cross-attention.
    void look_at(std::pair<std::int64_t, std::int64_t> tiles) {
        encode_pending();
        cross_.visible.resize(prompt_.input_ids.size(), sees_);
        sees_ = tiles;
    }
    std::int64_t cross_tiles() const noexcept { return static_cast<std::int64_t>(cross_.tiles.size()); }
    std::int64_t all_tiles() const noexcept {
        return cross_tiles() + static_cast<std::int64_t>(cross_.sequence_tiles.size());
    }

    CrossPrompt cross_;

  private:
    std::pair<std::int64_t, std::int64_t> sees_{0, 0};
};

// NVLM-X: tags are text, each tokenized apart, so that its tokens are its own
// and see its own tile.
class TextAssembly final : public CrossAssembly {
  public:
    using CrossAssembly::CrossAssembly;

    void add_image(std::int64_t tiles) override {
        add_text("<Image>");
        for (const std::string& tag : written_tags(tiles)) {
            cross_.tiles.push_back(all_tiles());
            look_at({cross_tiles() - 1, cross_tiles()});
            add_text(tag);
        }
        look_at({0, cross_tiles()});
        add_text("</Image>");
    }
};

// NVLM-H: thumbnail and its tag in the sequence; tags of regular tiles beside
// those, among the keys.
class HybridAssembly final : public CrossAssembly {
  public:
    using CrossAssembly::CrossAssembly;

    void add_image(std::int64_t tiles) override {
        add_text("<Image>");
        if (is_megatron()) encode_pending();
        for (std::int64_t k = 1; k < tiles; ++k) {
            cross_.tiles.push_back(all_tiles());
            cross_.tags.push_back(tokenizer_.encode_text(tag_of(k)));
        }
        cross_.sequence_tiles.push_back(all_tiles());
        add_text(settings_.thumbnail_tag);
        encode_pending();
        add_placeholders();
        look_at({0, cross_tiles()});
        add_text("</Image>");
    }

    // The thumbnail's alone.
    std::vector<std::string> written_tags(std::int64_t) const override { return {settings_.thumbnail_tag}; }
};

}  // namespace

void PromptAssembly::open_turn(std::string_view role) {
    add_special(turn_start, tokenizer_.turn_start_id());
    add_text(role);
    add_text("\n");
}

void PromptAssembly::close_turn() {
    add_special(turn_end, tokenizer_.turn_end_id());
    if (is_megatron()) add_text("\n");
}

void PromptAssembly::add_marked_text(std::string_view text) {
    for (const TextPiece& piece : tokenizer_.split_special(text)) {
        if (piece.special && piece.text != image_token) {
            add_special(piece.text, tokenizer_.special_id(piece.text));
        } else {
            add_text(piece.text);
        }
    }
}

void PromptAssembly::add_image(std::int64_t tiles) {
    add_text("<Image>");
    if (is_megatron()) encode_pending();
    for (const std::string& tag : written_tags(tiles)) {
        add_text(tag);
        encode_pending();
        add_placeholders();
    }
    add_text("</Image>");
}

std::vector<std::string> PromptAssembly::written_tags(std::int64_t tiles) const {
    std::vector<std::string> tags;
    for (std::int64_t k = 1; k < tiles; ++k) tags.push_back(tag_of(k));
    tags.push_back(settings_.thumbnail_tag);
    return tags;
}

void PromptAssembly::add_special(std::string_view token, std::int64_t id) {
    encode_pending();
    prompt_.input_ids.push_back(id);
    prompt_.text.append(token);
}

void PromptAssembly::add_placeholders() {
    for (std::int64_t i = 0; i < settings_.visual_tokens_per_tile; ++i) {
        prompt_.visual_positions.push_back(static_cast<std::int64_t>(prompt_.input_ids.size()));
        prompt_.input_ids.push_back(tokenizer_.image_token_id());
        prompt_.text.append(image_token);
    }
}

void PromptAssembly::encode_pending() {
    const std::string text = std::exchange(pending_, {});
    const std::vector<std::int64_t> ids = tokenizer_.encode_text(text);
    prompt_.input_ids.insert(prompt_.input_ids.end(), ids.begin(), ids.end());
    prompt_.text.append(text);
}

Prompt PromptAssembly::finish() {
    encode_pending();
    return std::move(prompt_);
}

std::unique_ptr<PromptAssembly> make_assembly(const Tokenizer& tokenizer, const PromptSettings& settings) {
    if (settings.variant == Variant::x) return std::make_unique<TextAssembly>(tokenizer, settings);
    if (settings.variant == Variant::h) return std::make_unique<HybridAssembly>(tokenizer, settings);
    return std::make_unique<PromptAssembly>(tokenizer, settings);
}

}  // namespace nvlm
