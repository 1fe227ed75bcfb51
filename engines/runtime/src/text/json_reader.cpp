#include "text/json_reader.hpp"

#include <charconv>
#include <utility>

#include "error.hpp"
#include "text/utf8.hpp"

namespace nvlm {
namespace {

constexpr int max_depth = 64;

bool is_digit(char c) noexcept {
    return c >= '0' && c <= '9';
}

}  // namespace

JsonReader::JsonReader(std::string_view text, std::string source) : text_(text), source_(std::move(source)) {
    position_ = utf8_valid_length(text);
    if (position_ != text.size()) fail("the text is not valid UTF-8");
    position_ = 0;
}

void JsonReader::fail(const std::string& what) const {
    throw Error(Status::failure, source_ + ": byte " + std::to_string(position_) + ": " + what);
}

void JsonReader::skip_space() noexcept {
    while (position_ < text_.size()) {
        const char c = text_[position_];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
        ++position_;
    }
}

char JsonReader::next_character() {
    skip_space();
    if (position_ == text_.size()) fail("the text ends too early");
    return text_[position_];
}

JsonReader::Kind JsonReader::peek() {
    switch (const char c = next_character()) {
        case '{':
            return Kind::object;
        case '[':
            return Kind::array;
        case '"':
            return Kind::string;
        case 't':
        case 'f':
            return Kind::boolean;
        case 'n':
            return Kind::null;
        default:
            if (c != '-' && !is_digit(c)) fail("there is no JSON value");
            return Kind::number;
    }
}

bool JsonReader::open(char bracket, char closing) {
    if (next_character() != bracket) fail(bracket == '{' ? "there is no object" : "there is no array");
    ++position_;
    if (next_character() == closing) {
        ++position_;
        return false;
    }
    if (++depth_ > max_depth) fail("values are nested too deeply");
    return true;
}

bool JsonReader::more(char closing) {
    const char c = next_character();
    if (c != ',' && c != closing)
        fail(std::string("there is neither ',' nor '") + closing + "' after a value");
    ++position_;
    if (c == closing) leave();
    return c == ',';
}

std::string_view JsonReader::string() {
    if (next_character() != '"') fail("there is no string");
    const std::size_t start = ++position_;
    std::size_t copied = start;
    unescaped_.clear();
    while (position_ < text_.size()) {
        const char c = text_[position_];
        if (c == '"') {
            const std::string_view rest = text_.substr(copied, position_++ - copied);
            if (copied == start) return rest;
            unescaped_.append(rest);
            return unescaped_;
        }
        if (static_cast<unsigned char>(c) < 0x20) fail("there is a control character in a string");
        ++position_;
        if (c == '\\') {
            unescaped_.append(text_.substr(copied, position_ - 1 - copied));
            append_escape();
            copied = position_;
        }
    }
    fail("a string has no end");
}

void JsonReader::append_escape() {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (position_ == text_.size()) fail("the text ends too early");
    const char c = text_[position_++];
    if (c != 'u') {
        const std::size_t found = names.find(c);
        if (found == std::string_view::npos) fail("there is an unknown escape in a string");
        unescaped_.push_back(meanings[found]);
        return;
    }
    char32_t point = four_digits();
    if (point >= 0xd800 && point < 0xdc00) {
        if (text_.substr(position_, 2) != "\\u") fail("there is half a surrogate pair in a string");
        position_ += 2;
        const std::uint32_t low = four_digits();
        if (low < 0xdc00 || low > 0xdfff) fail("there is half a surrogate pair in a string");
        point = 0x10000 + ((point - 0xd800) << 10U) + (low - 0xdc00);
    } else if (point >= 0xdc00 && point < 0xe000) {
        fail("there is half a surrogate pair in a string");
    }
    append_utf8(unescaped_, point);
}

std::uint32_t JsonReader::four_digits() {
    const std::string_view digits = text_.substr(position_, 4);
    std::uint32_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) {
        fail("there are no four hexadecimal digits after \\u");
    }
    position_ += 4;
    return value;
}

std::int64_t JsonReader::integer() {
    if (peek() != Kind::number) fail("there is no number");
    const char* const begin = text_.data() + position_;
    const char* const end = text_.data() + text_.size();
    std::int64_t value = 0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc()) fail("there is no integer of 64 bits");
    if (stop != end && (*stop == '.' || *stop == 'e' || *stop == 'E')) fail("there is no integer");
    position_ += static_cast<std::size_t>(stop - begin);
    return value;
}

bool JsonReader::boolean() {
    const char c = next_character();
    if (c != 't' && c != 'f') fail("there is neither true nor false");
    expect(c == 't' ? "true" : "false");
    return c == 't';
}

bool JsonReader::null() {
    if (next_character() != 'n') return false;
    expect("null");
    return true;
}

void JsonReader::expect(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) fail("there is no JSON value");
    position_ += word.size();
}

void JsonReader::skip() {
    switch (peek()) {
        case Kind::object:
            object([this](std::string_view) { skip(); });
            return;
        case Kind::array:
            array([this] { skip(); });
            return;
        case Kind::string:
            string();
            return;
        case Kind::boolean:
            boolean();
            return;
        case Kind::null:
            null();
            return;
        case Kind::number:
            while (position_ < text_.size() &&
                   std::string_view("+-.eE0123456789").find(text_[position_]) != std::string_view::npos) {
                ++position_;
            }
    }
}

void JsonReader::end() {
    skip_space();
    if (position_ != text_.size()) fail("there is more after the end");
}

}  // namespace nvlm
