#include "text/written_images.hpp"

#include <algorithm>
#include <cstddef>

#include "error.hpp"
#include "text/tokenizer.hpp"

namespace nvlm {
namespace {

using Tags = std::vector<std::string>;

constexpr std::string_view opening = "<Image>";
constexpr std::string_view closing = "</Image>";
constexpr std::string_view blanks = " \t\n\v\f\r";
constexpr const char* hint =
    "write <image> where an image goes, and its tags "
    "follow; in messages all text is text";

bool starts_with(std::string_view text, std::string_view start) {
    return text.substr(0, start.size()) == start;
}

// Length of the tile tag that `text` starts with: `<tile_1>`, `<tile_global>`,
// `<tile_global_thumbnail>`; 0 if none.
std::size_t tag_length(std::string_view text) {
    constexpr std::string_view stem = "<tile_";
    if (!starts_with(text, stem)) return 0;
    const std::size_t end = text.find('>');
    if (end == std::string_view::npos) return 0;
    const std::string_view name = text.substr(stem.size(), end - stem.size());
    const bool is_number = !name.empty() && name.find_first_not_of("0123456789") == std::string_view::npos;
    return is_number || name == "global" || name == "global_thumbnail" ? end + 1 : 0;
}

struct WrittenImage {
    std::size_t start;
    std::size_t end;
    Tags tags;
};

// Reads the image that is written at `start`, where `<Image>` stands; false if
// it holds anything but tags, placeholders and blanks.
bool read_written(std::string_view prompt, std::size_t start, WrittenImage& image) {
    image = {start, start + opening.size(), {}};
    while (!starts_with(prompt.substr(image.end), closing)) {
        const std::string_view rest = prompt.substr(image.end);
        if (const std::size_t length = tag_length(rest)) {
            image.tags.emplace_back(rest.substr(0, length));
            image.end += length;
        } else if (starts_with(rest, image_token)) {
            image.end += image_token.size();
        } else if (!rest.empty() && blanks.find(rest.front()) != std::string_view::npos) {
            ++image.end;
        } else {
            return false;
        }
    }
    image.end += closing.size();
    return true;
}

bool find_written(std::string_view prompt, std::size_t from, WrittenImage& image) {
    for (std::size_t start = from; (start = prompt.find(opening, start)) != std::string_view::npos; ++start) {
        if (read_written(prompt, start, image)) return true;
    }
    return false;
}

std::size_t count_markers(std::string_view text) {
    std::size_t count = 0;
    for (std::size_t start = 0; (start = text.find(image_marker, start)) != std::string_view::npos;) {
        ++count;
        start += image_marker.size();
    }
    return count;
}

std::string joined(const Tags& tags) {
    std::string text;
    for (const std::string& tag : tags) text.append(text.empty() ? "" : ", ").append(tag);
    return text;
}

void check_tags(const std::string& image, const Tags& found, const Tags& expected) {
    if (found == expected) return;
    if (found.empty()) throw Error(Status::usage, image + " is written without tags", hint);
    if (std::is_permutation(found.begin(), found.end(), expected.begin(), expected.end())) {
        const auto [wrong, right] = std::mismatch(found.begin(), found.end(), expected.begin());
        throw Error(
            Status::usage,
            "the tags of " + image + " are out of order: " + *wrong + " stands where " + *right + " belongs",
            hint);
    }
    throw Error(Status::usage,
                image + " is written with " + joined(found) + ", and its tiles' tags are " + joined(expected),
                hint);
}

void check_names(std::string_view text, const std::vector<Tags>& tags_per_image) {
    for (std::size_t start = 0; (start = text.find('<', start)) != std::string_view::npos; ++start) {
        const std::string_view tag = text.substr(start, tag_length(text.substr(start)));
        const bool is_known = std::any_of(
            tags_per_image.begin(), tags_per_image.end(),
            [tag](const Tags& tags) { return std::find(tags.begin(), tags.end(), tag) != tags.end(); });
        if (tag.empty() || is_known) continue;
        throw Error(Status::usage,
                    "the prompt names " + std::string(tag) + ", and no image that is passed has it", hint);
    }
}

}  // namespace

std::string mark_written_images(std::string_view prompt, const std::vector<Tags>& tags_per_image) {
    std::string marked;
    std::size_t end = 0;
    std::size_t number = 0;
    for (WrittenImage image{}; find_written(prompt, end, image); end = image.end, ++number) {
        const std::string_view before = prompt.substr(end, image.start - end);
        number += count_markers(before);
        if (number < tags_per_image.size()) {
            check_tags("image " + std::to_string(number + 1), image.tags, tags_per_image[number]);
        }
        marked.append(before).append(image_marker);
    }
    marked.append(prompt.substr(end));
    check_names(marked, tags_per_image);
    return marked;
}

}  // namespace nvlm
