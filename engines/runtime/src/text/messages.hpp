// Chat messages, checked and reduced to turns of text and images, as nvlm_deploy.preprocess.messages.

#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace nvlm {

// The place of an image in a message; without a source it is filled from the images passed apart.
struct ImagePlace {
    std::optional<std::string> source;
};

// Text is text: no marker or special token in it has a meaning.
using MessagePart = std::variant<std::string, ImagePlace>;

struct Turn {
    std::string role;  // system, user or assistant
    std::vector<MessagePart> parts;
};

// An image of a request: a file named in a message, or the number of one of the images passed apart.
using ImageSource = std::variant<std::string, std::size_t>;

// Reads a JSON list of {"role": ..., "content": TEXT or list of parts}; a part is {"type": "text", "text":
// ...} or {"type": "image"}, with a file name in "image" or not. Throws Error (usage) as `check_turns`, and
// for JSON of another form.
std::vector<Turn> parse_messages(std::string_view json);

// Throws Error (usage): an unknown role, a system message that is not the first, an image outside the user's
// messages, or a last message that is not the user's.
void check_turns(const std::vector<Turn>& turns);

// All images in the order of their places. Throws Error (usage): `passed` is not the number of places without
// a source.
std::vector<ImageSource> gather_images(const std::vector<Turn>& turns, std::size_t passed);

}  // namespace nvlm
