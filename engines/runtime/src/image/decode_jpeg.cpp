// JPEG by libjpeg-turbo, with the settings that Pillow leaves at their defaults: the accurate integer
// transform and smooth chroma upsampling.

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <vector>

#include "image/decode.hpp"

#include <jpeglib.h>

namespace nvlm {

namespace {

// libjpeg reports by a callback that must not return; it is left with longjmp, never with an exception,
// since no C++ object lives between setjmp and the calls.
struct Failure {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
};

void fail(j_common_ptr state) {
    auto* failure = reinterpret_cast<Failure*>(state->err);
    state->err->format_message(state, failure->text);
    std::longjmp(failure->jump, 1);
}

void ignore(j_common_ptr, int) {}

// The whole file is in memory: asking for more means that its end is missing.
boolean no_more_input(j_decompress_ptr state) {
    auto* failure = reinterpret_cast<Failure*>(state->err);
    std::snprintf(failure->text, sizeof failure->text, "the file ends too early");
    std::longjmp(failure->jump, 1);
}

void skip_input(j_decompress_ptr state, long count) {
    if (count <= 0) return;
    if (static_cast<std::size_t>(count) > state->src->bytes_in_buffer) no_more_input(state);
    state->src->next_input_byte += count;
    state->src->bytes_in_buffer -= static_cast<std::size_t>(count);
}

void nothing(j_decompress_ptr) {}

class JpegReader {
  public:
    explicit JpegReader(Bytes file) {
        state_.err = jpeg_std_error(&failure_.base);
        failure_.base.error_exit = fail;
        failure_.base.emit_message = ignore;
        source_.init_source = nothing;
        source_.fill_input_buffer = no_more_input;
        source_.skip_input_data = skip_input;
        source_.resync_to_restart = jpeg_resync_to_restart;
        source_.term_source = nothing;
        source_.next_input_byte = file.data;
        source_.bytes_in_buffer = file.size;
    }
    ~JpegReader() { jpeg_destroy_decompress(&state_); }
    JpegReader(const JpegReader&) = delete;
    JpegReader& operator=(const JpegReader&) = delete;

    // Each step returns false when libjpeg gave up; `reason` says why.
    bool read_header() {
        if (setjmp(failure_.jump) != 0) return false;
        jpeg_create_decompress(&state_);
        state_.src = &source_;
        jpeg_read_header(&state_, TRUE);
        return true;
    }
    bool start() {
        if (setjmp(failure_.jump) != 0) return false;
        state_.out_color_space = color_space();
        jpeg_start_decompress(&state_);
        return true;
    }
    bool read_row(std::uint8_t* row) {
        if (setjmp(failure_.jump) != 0) return false;
        jpeg_read_scanlines(&state_, &row, 1);
        return true;
    }
    bool finish() {
        if (setjmp(failure_.jump) != 0) return false;
        jpeg_finish_decompress(&state_);
        return true;
    }

    int width() const { return static_cast<int>(state_.image_width); }
    int height() const { return static_cast<int>(state_.image_height); }
    int channels() const { return state_.num_components; }
    const char* reason() const { return failure_.text; }

  private:
    J_COLOR_SPACE color_space() const {
        if (state_.num_components == 1) return JCS_GRAYSCALE;
        return state_.num_components == 3 ? JCS_RGB : JCS_CMYK;
    }

    jpeg_decompress_struct state_{};
    jpeg_source_mgr source_{};
    Failure failure_{};
};

void expand_gray(const std::uint8_t* gray, std::uint8_t* rgb, int width) {
    for (int x = 0; x < width; ++x, rgb += 3) rgb[0] = rgb[1] = rgb[2] = gray[x];
}

// Adobe's convention, which Pillow assumes: inks are stored inverted. Products are rounded as in Pillow.
void convert_cmyk(const std::uint8_t* inks, std::uint8_t* rgb, int width) {
    for (int x = 0; x < width; ++x, inks += 4, rgb += 3) {
        const unsigned light = inks[3];
        for (int channel = 0; channel < 3; ++channel) {
            const unsigned ink = 255U - inks[channel];
            const unsigned product = ink * light + 128U;
            const unsigned dark = ((product >> 8U) + product) >> 8U;
            rgb[channel] = static_cast<std::uint8_t>(light > dark ? light - dark : 0U);
        }
    }
}

}  // namespace

Image decode_jpeg(Bytes file, const std::string& label) {
    JpegReader reader(file);
    if (!reader.read_header()) throw_corrupt(label, reader.reason());
    check_image_size(reader.width(), reader.height(), label);
    if (reader.channels() != 1 && reader.channels() != 3 && reader.channels() != 4) {
        throw_corrupt(label, std::to_string(reader.channels()) + " color components");
    }
    if (!reader.start()) throw_corrupt(label, reader.reason());
    Image image(reader.width(), reader.height());
    std::vector<std::uint8_t> line(static_cast<std::size_t>(reader.width()) * 4);
    for (int y = 0; y < image.height(); ++y) {
        const bool direct = reader.channels() == 3;
        if (!reader.read_row(direct ? image.row(y) : line.data())) throw_corrupt(label, reader.reason());
        if (reader.channels() == 1) expand_gray(line.data(), image.row(y), image.width());
        if (reader.channels() == 4) convert_cmyk(line.data(), image.row(y), image.width());
    }
    if (!reader.finish()) throw_corrupt(label, reader.reason());
    return image;
}

}  // namespace nvlm
