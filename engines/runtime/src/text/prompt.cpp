#include "text/prompt.hpp"

#include <algorithm>
#include <cstddef>

#include "error.hpp"
#include "text/prompt_assembly.hpp"
#include "text/written_images.hpp"

namespace nvlm {
namespace {

constexpr std::string_view system_message = "Answer the questions.";

void check_tiles(const std::vector<std::int64_t>& tiles_per_image) {
    if (std::all_of(tiles_per_image.begin(), tiles_per_image.end(), [](std::int64_t n) { return n >= 1; }))
        return;
    std::string list;
    for (const std::int64_t tiles : tiles_per_image) {
        list.append(list.empty() ? "" : ", ").append(std::to_string(tiles));
    }
    throw Error(Status::usage, "every image has at least one tile, not [" + list + "]");
}

void check_image_count(const std::string& found, std::size_t places, std::size_t images) {
    if (places == images) return;
    throw Error(Status::usage, found + ", but the number of images passed is " + std::to_string(images),
                "in a plain prompt write <image> once per image, or nowhere: "
                "images then go first; "
                R"(in messages, write one {"type": "image"} part per image)");
}

void add_system(PromptAssembly& assembly) {
    assembly.open_turn("system");
    assembly.add_text(system_message);
    assembly.close_turn();
}

std::vector<std::string_view> split_at_markers(std::string_view prompt) {
    std::vector<std::string_view> texts;
    std::size_t start = 0;
    for (std::size_t end = 0; (end = prompt.find(image_marker, start)) != std::string_view::npos;) {
        texts.push_back(prompt.substr(start, end - start));
        start = end + image_marker.size();
    }
    texts.push_back(prompt.substr(start));
    return texts;
}

void add_parts(PromptAssembly& assembly, const Turn& turn, std::vector<std::int64_t>::const_iterator& tiles) {
    bool after_image = false;
    for (const MessagePart& part : turn.parts) {
        const auto* const text = std::get_if<std::string>(&part);
        if (text == nullptr) {
            assembly.add_image(*tiles++);
            assembly.add_text("\n");
        } else {
            const bool doubled = after_image && !text->empty() && text->front() == '\n';
            assembly.add_text(std::string_view(*text).substr(doubled ? 1 : 0));
        }
        after_image = text == nullptr;
    }
}

std::size_t count_images(const std::vector<Turn>& turns) {
    std::ptrdiff_t count = 0;
    for (const Turn& turn : turns) {
        count += std::count_if(turn.parts.begin(), turn.parts.end(), [](const MessagePart& part) {
            return std::holds_alternative<ImagePlace>(part);
        });
    }
    return static_cast<std::size_t>(count);
}

Prompt finish(PromptAssembly& assembly) {
    assembly.open_turn("assistant");
    return assembly.finish();
}

}  // namespace

TokenizationMode tokenization_mode(std::string_view name) {
    if (name == "hf") return TokenizationMode::hf;
    if (name == "megatron") return TokenizationMode::megatron;
    throw Error(Status::usage, "unknown tokenization mode '" + std::string(name) + "'",
                "known: hf, megatron");
}

PromptBuilder::PromptBuilder(Tokenizer tokenizer, PromptSettings settings)
    : tokenizer_(std::move(tokenizer)), settings_(std::move(settings)) {
    if (static_cast<std::int64_t>(tokenizer_.size()) > settings_.vocab_size) {
        throw Error(Status::failure,
                    "the tokenizer has " + std::to_string(tokenizer_.size()) +
                        " tokens, but the model's vocab_size is " + std::to_string(settings_.vocab_size),
                    "tokenizer and config.json must come from the same checkpoint");
    }
}

Prompt PromptBuilder::build(std::string_view prompt, const std::vector<std::int64_t>& tiles_per_image) const {
    check_tiles(tiles_per_image);
    const auto assembly = make_assembly(tokenizer_, settings_);
    std::string marked(prompt);
    if (settings_.variant != Variant::d) {
        // The released code leaves written tags of NVLM-D as text; here masks would
        // follow them.
        std::vector<std::vector<std::string>> tags;
        for (const std::int64_t tiles : tiles_per_image) tags.push_back(assembly->written_tags(tiles));
        marked = mark_written_images(prompt, tags);
    }
    if (marked.find(image_marker) == std::string::npos) {
        std::string markers;
        for (std::size_t i = 0; i < tiles_per_image.size(); ++i) markers.append(image_marker).append("\n");
        marked.insert(0, markers);
    }
    const std::vector<std::string_view> texts = split_at_markers(marked);
    const std::size_t places = texts.size() - 1;
    check_image_count("the prompt has " + std::to_string(places) + " " + std::string(image_marker), places,
                      tiles_per_image.size());
    add_system(*assembly);
    assembly->open_turn("user");
    assembly->add_marked_text(texts.front());
    for (std::size_t i = 0; i < places; ++i) {
        assembly->add_image(tiles_per_image[i]);
        assembly->add_marked_text(texts[i + 1]);
    }
    assembly->close_turn();
    return finish(*assembly);
}

Prompt PromptBuilder::build(const std::vector<Turn>& turns,
                            const std::vector<std::int64_t>& tiles_per_image) const {
    check_tiles(tiles_per_image);
    check_turns(turns);
    const std::size_t places = count_images(turns);
    check_image_count("the messages have " + std::to_string(places) + " image parts", places,
                      tiles_per_image.size());
    const auto assembly = make_assembly(tokenizer_, settings_);
    if (turns.front().role != "system") add_system(*assembly);
    auto tiles = tiles_per_image.begin();
    for (const Turn& turn : turns) {
        assembly->open_turn(turn.role);
        add_parts(*assembly, turn, tiles);
        assembly->close_turn();
    }
    return finish(*assembly);
}

}  // namespace nvlm
