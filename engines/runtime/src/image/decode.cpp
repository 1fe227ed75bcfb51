#include "image/decode.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/file.hpp"
#include "base/words.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

constexpr std::uint8_t jpeg_magic[] = {0xff, 0xd8, 0xff};
constexpr std::uint8_t png_magic[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

template <std::size_t n>
bool starts_with(Bytes file, const std::uint8_t (&magic)[n]) {
    return file.size >= n && std::equal(magic, magic + n, file.data);
}

std::vector<std::uint8_t> read_image_file(const std::string& path) {
    try {
        return read_file(path);
    } catch (const FileError& error) {
        if (error.code() == ENOENT || error.code() == ENOTDIR) {
            throw Error(Status::failure, "the image " + path + " does not exist",
                        "give the path of a local image file");
        }
        throw Error(Status::failure, "the image " + path + " cannot be read: " + std::strerror(error.code()));
    }
}

}  // namespace

Image load_image(const std::string& path) {
    const std::vector<std::uint8_t> file = read_image_file(path);
    return decode_image({file.data(), file.size()}, path);
}

Image decode_image(Bytes file, const std::string& label) {
    if (file.size == 0) throw Error(Status::failure, label + " is empty", "check how it was written");
    if (starts_with(file, jpeg_magic)) return decode_jpeg(file, label);
    if (starts_with(file, png_magic)) return decode_png(file, label);
    throw Error(Status::failure, label + " is neither a JPEG nor a PNG file",
                "convert it to one of these, or decode it yourself and pass its RGB pixels");
}

Image copy_pixels(const std::uint8_t* pixels, std::int64_t width, std::int64_t height, std::size_t stride,
                  const std::string& label) {
    check_image_size(width, height, label);
    Image image(static_cast<int>(width), static_cast<int>(height));
    if (stride == 0) stride = image.row_bytes();
    if (stride < image.row_bytes()) {
        throw Error(Status::usage, label + " has rows of " + std::to_string(stride) + " bytes, and " +
                                       std::to_string(width) + " RGB pixels take " +
                                       std::to_string(image.row_bytes()));
    }
    for (int y = 0; y < image.height(); ++y) {
        std::memcpy(image.row(y), pixels + stride * static_cast<std::size_t>(y), image.row_bytes());
    }
    return image;
}

void check_image_size(std::int64_t width, std::int64_t height, const std::string& label) {
    if (width < 1 || height < 1) {
        throw Error(Status::failure,
                    label + " has no pixels: " + std::to_string(width) + " x " + std::to_string(height),
                    "check how the image was made");
    }
    if (width > max_image_pixels || height > max_image_pixels || width * height > max_image_pixels) {
        throw Error(Status::failure,
                    label + " is too large: " + grouped(width) + " x " + grouped(height) +
                        " pixels, more than the limit of " + grouped(max_image_pixels) + " pixels",
                    "scale the image down first; a small file that claims this many may be a "
                    "decompression bomb");
    }
}

void throw_corrupt(const std::string& label, const std::string& reason) {
    throw Error(Status::failure, label + " is corrupt or truncated: " + reason,
                "open it in an image viewer and save it again, or fetch it anew");
}

}  // namespace nvlm
