#include "text/messages.hpp"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <utility>

#include "error.hpp"

namespace nvlm {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 3> roles = {"system", "user", "assistant"};
constexpr const char* role_hint = "known: assistant, system, user";

[[noreturn]] void refuse(const std::string& message, std::string hint = {}) {
    throw Error(Status::usage, message, std::move(hint));
}

// The names that Python has for the types, so that both runtimes say the same.
std::string type_name(const Json& value) {
    if (value.is_object()) return "dict";
    if (value.is_array()) return "list";
    if (value.is_string()) return "str";
    if (value.is_boolean()) return "bool";
    if (value.is_null()) return "NoneType";
    return value.is_number_integer() ? "int" : "float";
}

std::string quoted(const Json& value) {
    return value.is_string() ? "'" + value.get<std::string>() + "'" : value.dump();
}

void check_keys(const Json& found, std::initializer_list<std::string_view> required,
                std::initializer_list<std::string_view> allowed, const std::string& where) {
    const auto joined = [](std::initializer_list<std::string_view> names) {
        std::string text;
        for (const std::string_view name : names) text.append(text.empty() ? "" : ", ").append(name);
        return text;
    };
    for (const std::string_view key : required) {
        if (!found.contains(key)) {
            refuse(where + " has no '" + std::string(key) + "'", "needed: " + joined(required));
        }
    }
    for (const auto& [key, value] : found.items()) {
        if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) {
            refuse(where + " has an unknown key '" + key + "'", "known: " + joined(allowed));
        }
    }
}

ImagePlace parse_image(const Json& part, const std::string& where) {
    check_keys(part, {"type"}, {"type", "image"}, where);
    const auto source = part.find("image");
    if (source == part.end() || source->is_null()) return {};
    if (!source->is_string())
        refuse(where + ".image is a " + type_name(*source) + ", not the name of a file");
    return {source->get<std::string>()};
}

MessagePart parse_part(const Json& part, const std::string& where) {
    const Json kind = part.is_object() ? part.value("type", Json()) : Json();
    if (kind == "image") return parse_image(part, where);
    if (kind != "text") {
        const std::string type = kind.is_null() ? "None" : quoted(kind);
        refuse(where + " is " + (part.is_object() ? "of the type " + type : "a " + type_name(part)),
               "a part is an object of the type 'text' or 'image'");
    }
    check_keys(part, {"type", "text"}, {"type", "text"}, where);
    const Json& text = part.at("text");
    if (!text.is_string()) refuse(where + ".text is a " + type_name(text) + ", not a string");
    return text.get<std::string>();
}

std::vector<MessagePart> parse_content(const Json& content, const std::string& where) {
    if (content.is_string()) return {content.get<std::string>()};
    if (!content.is_array()) {
        refuse(where + ".content is a " + type_name(content) + ", not a string or a list of parts");
    }
    std::vector<MessagePart> parts;
    for (std::size_t i = 0; i < content.size(); ++i) {
        parts.push_back(parse_part(content[i], where + ".content[" + std::to_string(i) + "]"));
    }
    return parts;
}

bool has_image(const Turn& turn) {
    return std::any_of(turn.parts.begin(), turn.parts.end(),
                       [](const MessagePart& part) { return std::holds_alternative<ImagePlace>(part); });
}

void check_turn(const Turn& turn, const std::string& where) {
    if (std::find(roles.begin(), roles.end(), turn.role) == roles.end()) {
        refuse(where + ".role is '" + turn.role + "'", role_hint);
    }
    if (turn.role != "user" && has_image(turn)) {
        refuse(where + " is a " + turn.role + " message with an image", "images belong to user messages");
    }
}

std::string place_of(std::size_t index) {
    return "messages[" + std::to_string(index) + "]";
}

Turn parse_message(const Json& message, const std::string& where) {
    if (!message.is_object()) {
        refuse(where + " is a " + type_name(message) + ", not an object with 'role' and 'content'");
    }
    check_keys(message, {"role", "content"}, {"role", "content"}, where);
    const Json& role = message.at("role");
    if (!role.is_string()) refuse(where + ".role is " + quoted(role), role_hint);
    Turn turn{role.get<std::string>(), {}};
    check_turn(turn, where);
    turn.parts = parse_content(message.at("content"), where);
    check_turn(turn, where);
    return turn;
}

}  // namespace

std::vector<Turn> parse_messages(std::string_view json) {
    const Json messages = Json::parse(json, nullptr, false);
    if (!messages.is_array()) {
        refuse(messages.is_discarded() ? "the messages are not valid JSON" : "the messages are not a list",
               R"(write [{"role": "user", "content": "..."}])");
    }
    std::vector<Turn> turns;
    for (std::size_t i = 0; i < messages.size(); ++i)
        turns.push_back(parse_message(messages[i], place_of(i)));
    check_turns(turns);
    return turns;
}

void check_turns(const std::vector<Turn>& turns) {
    for (std::size_t i = 0; i < turns.size(); ++i) check_turn(turns[i], place_of(i));
    if (turns.empty() || turns.back().role != "user") {
        const std::string last =
            turns.empty() ? "is missing: there are no messages" : "comes from the " + turns.back().role;
        refuse("the last message " + last, "end the chat with a message of the role 'user'");
    }
    for (std::size_t i = 1; i < turns.size(); ++i) {
        if (turns[i].role == "system") {
            refuse(place_of(i) + " is a system message", "only the first message may be one");
        }
    }
}

std::vector<ImageSource> gather_images(const std::vector<Turn>& turns, std::size_t passed) {
    std::vector<ImageSource> images;
    std::size_t open_places = 0;
    for (const Turn& turn : turns) {
        for (const MessagePart& part : turn.parts) {
            const auto* const place = std::get_if<ImagePlace>(&part);
            if (place == nullptr) continue;
            if (place->source) {
                images.emplace_back(*place->source);
            } else {
                images.emplace_back(open_places++);
            }
        }
    }
    if (open_places != passed) {
        refuse("the messages have " + std::to_string(open_places) +
                   " image parts without a source; images passed: " + std::to_string(passed),
               R"(give each image one part: {"type": "image"}, or {"type": "image", "image": FILE})");
    }
    return images;
}

}  // namespace nvlm
