// Reads JSON from start to end without building a tree: a real tokenizer.json has 450,000 strings.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nvlm {

// Every method throws Error (failure) that names the source and the byte where the text is not as expected.
class JsonReader {
  public:
    enum class Kind { object, array, string, number, boolean, null };

    // `text` must outlive the reader. Text that is not valid UTF-8 is refused here.
    JsonReader(std::string_view text, std::string source);

    // The kind of the value that comes next.
    Kind peek();

    // Reads an object; `member(key)` must read or skip the value. The key lives as long as `member` runs.
    template <typename Member>
    void object(Member&& member);

    // Reads an array; `element()` must read or skip one value.
    template <typename Element>
    void array(Element&& element);

    // The view is valid until the next string is read.
    std::string_view string();
    std::int64_t integer();
    bool boolean();
    // Reads null if it comes next.
    bool null();
    void skip();
    // Only white space may follow.
    void end();

    // For values that must be read after later ones: where the reader stands, and back to there.
    std::size_t position() const noexcept { return position_; }
    void seek(std::size_t position) noexcept { position_ = position; }

    [[noreturn]] void fail(const std::string& what) const;

  private:
    bool open(char bracket, char closing);
    // After a value: true if another follows, false at the closing bracket.
    bool more(char closing);
    void leave() noexcept { --depth_; }
    void expect(std::string_view word);
    char next_character();
    void skip_space() noexcept;
    void append_escape();
    std::uint32_t four_digits();

    std::string_view text_;
    std::string source_;
    std::string unescaped_;
    std::size_t position_ = 0;
    int depth_ = 0;
};

template <typename Member>
void JsonReader::object(Member&& member) {
    if (!open('{', '}')) return;
    do {
        const std::string key(string());
        if (next_character() != ':') fail("there is no ':' after a key");
        ++position_;
        member(std::string_view(key));
    } while (more('}'));
}

template <typename Element>
void JsonReader::array(Element&& element) {
    if (!open('[', ']')) return;
    do {
        element();
    } while (more(']'));
}

}  // namespace nvlm
