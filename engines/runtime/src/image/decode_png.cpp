// PNG by libpng, with Pillow's reduction to RGB: alpha is dropped and not blended, gamma and profiles are
// ignored, 16-bit color keeps its high byte, and 16-bit gray is clipped to 255.

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "image/decode.hpp"

#include <png.h>

namespace nvlm {

namespace {

struct Source {
    Bytes rest;
    char reason[160] = "";
};

void fail(png_structp png, png_const_charp text) {
    auto* source = static_cast<Source*>(png_get_error_ptr(png));
    std::snprintf(source->reason, sizeof source->reason, "%s", text);
    png_longjmp(png, 1);
}

void ignore(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep to, std::size_t count) {
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (count > source->rest.size) png_error(png, "the file ends too early");
    std::memcpy(to, source->rest.data, count);
    source->rest.data += count;
    source->rest.size -= count;
}

// As in JpegReader: no C++ object lives between setjmp and the calls into the library.
class PngReader {
  public:
    explicit PngReader(Bytes file) { source_.rest = file; }
    ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
    PngReader(const PngReader&) = delete;
    PngReader& operator=(const PngReader&) = delete;

    bool read_header() {
        png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source_, fail, ignore);
        info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
        if (info_ == nullptr) return false;
        if (setjmp(png_jmpbuf(png_)) != 0) return false;
        png_set_read_fn(png_, &source_, read_bytes);
        // Sizes are checked by check_image_size, with the same limit for all formats.
        png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
        png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
        png_read_info(png_, info_);
        return true;
    }
    bool start() {
        if (setjmp(png_jmpbuf(png_)) != 0) return false;
        if (color_type() == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
        png_set_packing(png_);
        interlaced_ = png_set_interlace_handling(png_) > 1;
        png_read_update_info(png_, info_);
        return true;
    }
    bool read_row(std::uint8_t* row) {
        if (setjmp(png_jmpbuf(png_)) != 0) return false;
        png_read_row(png_, row, nullptr);
        return true;
    }
    bool read_all(png_bytepp rows) {
        if (setjmp(png_jmpbuf(png_)) != 0) return false;
        png_read_image(png_, rows);
        return true;
    }

    std::int64_t width() const { return png_get_image_width(png_, info_); }
    std::int64_t height() const { return png_get_image_height(png_, info_); }
    std::size_t row_bytes() const { return png_get_rowbytes(png_, info_); }
    int bytes_per_sample() const { return png_get_bit_depth(png_, info_) == 16 ? 2 : 1; }
    int channels() const { return png_get_channels(png_, info_); }
    int color_type() const { return png_get_color_type(png_, info_); }
    bool interlaced() const { return interlaced_; }
    // 256 entries; those that the file leaves out are black.
    std::vector<png_color> palette() const {
        std::vector<png_color> colors(256, png_color{0, 0, 0});
        png_colorp entries = nullptr;
        int count = 0;
        if (png_get_PLTE(png_, info_, &entries, &count) != 0) {
            std::copy(entries, entries + count, colors.begin());
        }
        return colors;
    }
    const char* reason() const { return source_.reason; }

  private:
    png_structp png_ = nullptr;
    png_infop info_ = nullptr;
    bool interlaced_ = false;
    Source source_;
};

void map_palette(const std::uint8_t* indices, std::uint8_t* rgb, int width,
                 const std::vector<png_color>& palette) {
    for (int x = 0; x < width; ++x, rgb += 3) {
        const png_color color = palette[indices[x]];
        rgb[0] = color.red;
        rgb[1] = color.green;
        rgb[2] = color.blue;
    }
}

// Gray with or without alpha. Only gray of 16 bits without alpha is clipped: Pillow keeps its whole range.
void expand_gray(const std::uint8_t* samples, std::uint8_t* rgb, int width, int channels, int size) {
    const bool clip = size == 2 && channels == 1;
    const std::ptrdiff_t step = channels * std::ptrdiff_t{size};
    for (int x = 0; x < width; ++x, samples += step, rgb += 3) {
        const std::uint8_t gray = clip ? (samples[0] != 0 ? 255 : samples[1]) : samples[0];
        rgb[0] = rgb[1] = rgb[2] = gray;
    }
}

void take_color(const std::uint8_t* samples, std::uint8_t* rgb, int width, int channels, int size) {
    for (int x = 0; x < width; ++x, samples += channels * std::ptrdiff_t{size}, rgb += 3) {
        rgb[0] = samples[0];
        rgb[1] = samples[size];
        rgb[2] = samples[std::ptrdiff_t{2} * size];
    }
}

// One row of samples to RGB.
class RowConverter {
  public:
    explicit RowConverter(const PngReader& reader)
        : color_type_(reader.color_type()),
          channels_(reader.channels()),
          size_(reader.bytes_per_sample()),
          palette_(reader.palette()) {}

    void operator()(const std::uint8_t* samples, std::uint8_t* rgb, int width) const {
        if (color_type_ == PNG_COLOR_TYPE_PALETTE) {
            map_palette(samples, rgb, width, palette_);
        } else if (channels_ < 3) {
            expand_gray(samples, rgb, width, channels_, size_);
        } else {
            take_color(samples, rgb, width, channels_, size_);
        }
    }

  private:
    int color_type_;
    int channels_;
    int size_;
    std::vector<png_color> palette_;
};

// Interlaced files come in seven passes over the whole image, so all of their samples are kept.
void read_interlaced(PngReader& reader, const RowConverter& convert, Image& image, const std::string& label) {
    const std::size_t pitch = reader.row_bytes();
    std::vector<std::uint8_t> samples(pitch * static_cast<std::size_t>(image.height()));
    std::vector<png_bytep> rows(static_cast<std::size_t>(image.height()));
    for (std::size_t y = 0; y < rows.size(); ++y) rows[y] = samples.data() + pitch * y;
    if (!reader.read_all(rows.data())) throw_corrupt(label, reader.reason());
    for (int y = 0; y < image.height(); ++y) {
        convert(rows[static_cast<std::size_t>(y)], image.row(y), image.width());
    }
}

}  // namespace

Image decode_png(Bytes file, const std::string& label) {
    PngReader reader(file);
    if (!reader.read_header()) throw_corrupt(label, reader.reason());
    check_image_size(reader.width(), reader.height(), label);
    if (!reader.start()) throw_corrupt(label, reader.reason());
    Image image(static_cast<int>(reader.width()), static_cast<int>(reader.height()));
    const RowConverter convert(reader);
    if (reader.interlaced()) {
        read_interlaced(reader, convert, image, label);
        return image;
    }
    std::vector<std::uint8_t> samples(reader.row_bytes());
    for (int y = 0; y < image.height(); ++y) {
        if (!reader.read_row(samples.data())) throw_corrupt(label, reader.reason());
        convert(samples.data(), image.row(y), image.width());
    }
    return image;
}

}  // namespace nvlm
