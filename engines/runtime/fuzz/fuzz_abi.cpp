// libFuzzer: whatever arguments a program passes within the rules of nvlm.h, every entry answers with a
// status, and what fails says why. Structures have the sizes of any header, pointers may be null, numbers are
// any numbers. The engine is that of NVLM_FUZZ_BUNDLE.

#include <array>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "input.hpp"
#include "nvlm/nvlm.h"

namespace {

using nvlm::fuzz::Input;
using nvlm::fuzz::require;

constexpr std::size_t max_calls = 4;
constexpr std::size_t max_images = 3;
// The library reads no further behind a structure.
constexpr std::size_t room = 8192;

const char* bundle() {
    const char* const path = std::getenv("NVLM_FUZZ_BUNDLE");
    require(path != nullptr);
    return path;
}

nvlm_engine* engine() {
    static nvlm_engine* const opened = [] {
        nvlm_engine_options options = {};
        options.struct_size = sizeof options;
        options.threads = 1;
        options.image_cache_bytes = 1 << 16;
        nvlm_engine* made = nullptr;
        require(nvlm_engine_open(bundle(), &options, &made) == NVLM_OK);
        return made;
    }();
    return opened;
}

void told(nvlm_status status) {
    switch (status) {
        case NVLM_OK:
            return;
        case NVLM_FAILURE:
        case NVLM_USAGE:
        case NVLM_UNSUITABLE:
        case NVLM_VERIFICATION:
        case NVLM_CANCELLED:
            require(*nvlm_last_error() != '\0');
            return;
    }
    std::abort();
}

// A structure of the size that an older or a newer header gives it; what is behind the known part is zero or
// not.
template <class Struct>
class Sized {
  public:
    explicit Sized(Input& input) : known_(new (memory_.data()) Struct{}), null_(input.below(16) == 1) {
        switch (input.below(8)) {
            case 1:
                known_->struct_size = input.number<std::uint16_t>();
                break;
            case 2:
                known_->struct_size = sizeof(Struct) + 8 * input.below(room / 16);
                memory_[sizeof(Struct) + input.below(room / 2)] = input.number<unsigned char>();
                break;
            case 3:
                known_->struct_size = 8 * input.below(sizeof(Struct) / 8);
                break;
            default:
                known_->struct_size = sizeof(Struct);
        }
    }

    Struct* operator->() noexcept { return known_; }
    Struct* get() noexcept { return null_ ? nullptr : known_; }

  private:
    alignas(Struct) std::array<unsigned char, sizeof(Struct) + room> memory_ = {};
    Struct* known_;
    bool null_;
};

// What an image's pointers point to.
struct ImageParts {
    std::string path;
    std::string file;
    std::vector<std::uint8_t> pixels;
};

void fill(nvlm_image& image, ImageParts& parts, Input& input) {
    switch (input.below(5)) {
        case 1:
            parts.path = input.text();
            image.path = parts.path.c_str();
            break;
        case 2:
            parts.file = input.text();
            image.file = parts.file.data();
            image.file_size = parts.file.size();
            break;
        case 3:
            // Nothing of these is read: no such image exists.
            parts.pixels.assign(1, 0);
            image.pixels = parts.pixels.data();
            image.width = input.number<std::int64_t>() | INT64_MIN;
            image.height = input.number<std::int64_t>();
            break;
        case 4:
            image.width = static_cast<std::int64_t>(1 + input.below(90));
            image.height = static_cast<std::int64_t>(1 + input.below(90));
            image.stride = input.below(2) * 3 * 90;
            parts.pixels.assign(90 * 90 * 3, input.number<std::uint8_t>());
            image.pixels = parts.pixels.data();
            break;
        default:
            break;
    }
}

// Images as far apart as the first one's size says.
class Images {
  public:
    explicit Images(Input& input) : count_(input.below(max_images + 1)) {
        Sized<nvlm_image> first(input);
        step_ = first->struct_size;
        memory_.resize((count_ * step_ + sizeof(nvlm_image) + room) / sizeof(nvlm_image) + 1);
        for (std::size_t i = 0; i < count_; ++i) {
            nvlm_image image = {};
            fill(image, parts_[i], input);
            image.struct_size = i == 0 ? step_ : 8 * input.below(64);
            std::memcpy(reinterpret_cast<unsigned char*>(memory_.data()) + i * step_, &image,
                        std::min(step_ > 8 ? step_ : sizeof image, sizeof image));
        }
    }

    const nvlm_image* data() const { return memory_.data(); }
    std::size_t count() const { return count_; }

  private:
    std::size_t count_;
    std::size_t step_ = 0;
    std::array<ImageParts, max_images> parts_;
    std::vector<nvlm_image> memory_;
};

// A buffer of the caller: none, too small, or large enough; nothing is written behind it.
template <class Element>
class Buffer {
  public:
    explicit Buffer(Input& input) : elements_(input.below(3) * input.below(2000)) {
        null_ = input.below(4) == 1;
        with_length_ = input.below(4) != 1;
    }

    Element* data() { return null_ || elements_.empty() ? nullptr : elements_.data(); }
    std::size_t capacity() const { return elements_.size(); }
    std::size_t* length() { return with_length_ ? &length_ : nullptr; }

  private:
    std::vector<Element> elements_;
    std::size_t length_ = 0;
    bool null_ = false;
    bool with_length_ = true;
};

void read_result(const nvlm_result* result, Input& input) {
    Sized<nvlm_result_info> info(input);
    told(nvlm_result_get_info(result, info.get()));
    Buffer<char> text(input);
    told(nvlm_result_text(result, text.data(), text.capacity(), text.length()));
    told(nvlm_result_json(result, text.data(), text.capacity(), text.length()));
    Buffer<std::int64_t> ids(input);
    told(nvlm_result_tokens(result, input.number<std::int32_t>(), ids.data(), ids.capacity(), ids.length()));
    double milliseconds = 0;
    told(nvlm_result_timing(result, input.below(2) == 0 ? "total" : input.text().c_str(), &milliseconds));
}

int take_piece(const char*, std::size_t, void* user) {
    return static_cast<Input*>(user)->below(8) == 1 ? 1 : 0;
}

void try_generate(Input& input) {
    const std::string prompt = input.text();
    const std::string stop = input.text();
    const std::array<const char*, 2> stops = {stop.c_str(), input.below(4) == 1 ? nullptr : "x"};
    const Images images(input);
    nvlm_cancellation* cancellation = nullptr;
    told(nvlm_cancellation_new(&cancellation));
    if (input.below(8) == 1) nvlm_cancel(cancellation);
    Sized<nvlm_request> request(input);
    const std::size_t kind = input.below(8);
    request->prompt = kind == 1 || kind == 2 ? nullptr : prompt.c_str();
    request->messages = kind == 1 || kind == 3 ? prompt.c_str() : nullptr;
    request->images = images.count() == 0 ? nullptr : images.data();
    request->image_count = images.count();
    request->max_new_tokens = 1 + input.below(3);
    request->stop = stops.data();
    request->stop_count = input.below(3);
    if (input.below(2) == 1) {
        request->temperature = input.number<double>();
        request->top_k = input.number<std::int64_t>();
        request->top_p = input.number<double>();
        request->seed = input.number<std::uint64_t>();
        request->top_logits = input.number<std::size_t>();
    }
    request->cancellation = input.below(2) == 1 ? cancellation : nullptr;
    nvlm_result* result = nullptr;
    const nvlm_status status =
        input.below(2) == 0 ? nvlm_generate(engine(), request.get(), &result)
                            : nvlm_generate_stream(engine(), request.get(), take_piece, &input, &result);
    told(status);
    require((status == NVLM_OK) == (result != nullptr));
    read_result(result, input);
    nvlm_result_free(result);
    nvlm_cancellation_free(cancellation);
}

void try_parts(Input& input) {
    const Images images(input);
    const nvlm_image* const image = images.count() == 0 ? nullptr : images.data();
    Buffer<std::uint8_t> tiles(input);
    std::int32_t columns = 0;
    told(nvlm_tile(engine(), image, tiles.data(), tiles.capacity(), tiles.length(), &columns, nullptr));
    told(nvlm_cache_prefetch(engine(), image, nullptr));
    Sized<nvlm_cache_info> cache(input);
    told(nvlm_cache_get_info(engine(), cache.get()));
    Sized<nvlm_engine_info> info(input);
    told(nvlm_engine_get_info(engine(), info.get()));
    told(nvlm_cache_clear(engine()));
}

void try_text(Input& input) {
    Buffer<std::int64_t> ids(input);
    told(nvlm_tokenize(engine(), input.text().c_str(), ids.data(), ids.capacity(), ids.length()));
    std::vector<std::int64_t> given(input.below(16));
    for (std::int64_t& id : given) {
        id = input.below(2) == 0 ? static_cast<std::int64_t>(input.below(400)) : input.number<std::int64_t>();
    }
    Buffer<char> text(input);
    told(nvlm_detokenize(engine(), given.empty() ? nullptr : given.data(), given.size(), text.data(),
                         text.capacity(), text.length()));
}

void try_open(Input& input) {
    const std::string text = input.text();
    Sized<nvlm_engine_options> options(input);
    options->threads = input.number<std::int32_t>();
    // As many threads as there are would start as many.
    if (options->threads >= 0 && options->threads <= 4096) options->threads = 1;
    options->mapped = input.number<std::int32_t>();
    options->skip_digests = input.number<std::int32_t>();
    options->require_verified = input.number<std::int32_t>();
    options->image_cache_bytes = input.number<std::int64_t>();
    options->device = input.below(2) == 0 ? nullptr : text.c_str();
    options->library = input.below(4) == 1 ? "/nowhere/libonnxruntime.so" : nullptr;
    nvlm_engine* opened = nullptr;
    const nvlm_status status =
        nvlm_engine_open(input.below(4) == 1 ? text.c_str() : bundle(), options.get(), &opened);
    told(status);
    require((status == NVLM_OK) == (opened != nullptr));
    nvlm_engine_close(opened);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    for (std::size_t i = 0; i < max_calls && !input.empty(); ++i) {
        switch (input.below(8)) {
            case 0:
                try_open(input);
                break;
            case 1:
                try_parts(input);
                break;
            case 2:
                try_text(input);
                break;
            default:
                try_generate(input);
        }
    }
    return 0;
}
