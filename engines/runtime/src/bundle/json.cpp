#include "bundle/json.hpp"

#include <utility>

#include "error.hpp"

namespace nvlm {

namespace {

// Deeper than anything that is written, and far from the end of any stack.
constexpr int max_depth = 64;
constexpr std::size_t shown_bytes = 120;

std::string shown(const Json& value) {
    const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    return text.size() <= shown_bytes ? text : text.substr(0, shown_bytes) + "...";
}

}  // namespace

Json parse_object(const std::string& text, const std::string& source) {
    const auto limit = [&](int depth, Json::parse_event_t, Json&) {
        if (depth > max_depth) throw Error(Status::failure, source + " is nested too deeply");
        return true;
    };
    Json value;
    try {
        value = Json::parse(text, limit);
    } catch (const Json::parse_error& error) {
        // The library's own words may quote half a character.
        throw Error(Status::failure, source + " is not valid JSON, at byte " + std::to_string(error.byte));
    } catch (const Json::exception&) {
        throw Error(Status::failure, source + " is not valid JSON: a number is out of range");
    }
    if (!value.is_object()) throw Error(Status::failure, source + " must hold a JSON object");
    return value;
}

Fields::Fields(const Json& object, std::string source, std::string prefix)
    : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

const Json& Fields::at(const std::string& key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) {
        throw Error(Status::failure, source_ + ": the key '" + named(key) + "' is missing");
    }
    return *found;
}

std::string Fields::text(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_string()) fail(key, "a text");
    return value.get<std::string>();
}

bool Fields::flag(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_boolean()) fail(key, "true or false");
    return value.get<bool>();
}

std::int64_t Fields::integer(const std::string& key, std::int64_t minimum, std::int64_t maximum) const {
    const Json& value = at(key);
    if (!value.is_number_integer() || value.get<std::int64_t>() < minimum ||
        value.get<std::int64_t>() > maximum) {
        fail(key, "an integer from " + std::to_string(minimum) + " to " + std::to_string(maximum));
    }
    return value.get<std::int64_t>();
}

const Json& Fields::list(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_array()) fail(key, "a list");
    return value;
}

const Json& Fields::object(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_object()) fail(key, "an object");
    return value;
}

Fields Fields::section(const std::string& key) const {
    return {object(key), source_, named(key)};
}

void Fields::fail(const std::string& key, const std::string& must) const {
    throw Error(Status::failure,
                source_ + ": " + named(key) + " must be " + must + ", not " + shown(object_.at(key)));
}

std::string Fields::named(const std::string& key) const {
    return prefix_.empty() ? key : prefix_ + "." + key;
}

}  // namespace nvlm
