// Image files and raw pixels to RGB, with the pixels of Pillow's `Image.open(file).convert("RGB")`.
//
// EXIF orientation is not applied, as in the released preprocessing.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "image/image.hpp"

namespace nvlm {

// The size from which Pillow itself warns of a decompression bomb: 256 MiB of RGB.
constexpr std::int64_t max_image_pixels = 89478485;

// Bytes that the caller keeps.
struct Bytes {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;
};

// Decode a JPEG or PNG file. Throws Error (failure) that names the file.
Image load_image(const std::string& path);

// Decode the bytes of a JPEG or PNG file; errors call it `label`.
Image decode_image(Bytes file, const std::string& label);

// Copy raw 8-bit RGB rows that are `stride` bytes apart; 0 stands for rows without gaps.
Image copy_pixels(const std::uint8_t* pixels, std::int64_t width, std::int64_t height, std::size_t stride,
                  const std::string& label);

// For decoders: refuse sizes without pixels, and more than `max_image_pixels`.
void check_image_size(std::int64_t width, std::int64_t height, const std::string& label);

// For decoders: the error of a file that says it is an image and is none.
[[noreturn]] void throw_corrupt(const std::string& label, const std::string& reason);

Image decode_jpeg(Bytes file, const std::string& label);
Image decode_png(Bytes file, const std::string& label);

}  // namespace nvlm
