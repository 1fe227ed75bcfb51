// Images that a plain prompt writes out itself, `<Image>` and tags, held
// against the tiles that are there.

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nvlm {

inline constexpr std::string_view image_marker = "<image>";

// Returns the prompt with `<image>` for every image that it writes out.
// `tags_per_image` are the tags of every image that is passed, in order. Throws
// Error (usage) if an image is written with no tags or not with its own, or if
// the text around images names a tile that no image has.
std::string mark_written_images(std::string_view prompt,
                                const std::vector<std::vector<std::string>>& tags_per_image);

}  // namespace nvlm
