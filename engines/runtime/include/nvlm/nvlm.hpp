// nvlm.hpp: nvlm.h for C++17, in one header. Owners free what they own, and failures are exceptions.
//
//     nvlm::Engine engine("bundle");
//     nvlm::Request request("What is the total?");
//     request.add_image("receipt.png");
//     std::cout << engine.generate(request).text() << '\n';
//
// An Engine may be used by many threads at once; everything else belongs to one thread at a time, except
// Cancellation::cancel, which any thread may call.

#ifndef NVLM_NVLM_HPP
#define NVLM_NVLM_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nvlm.h"

namespace nvlm {
// A version of its own: the names of a program's copy of this header never meet those inside a library.
inline namespace v1 {

// What a call failed with; `hint` says what can be done about it.
class Failure : public std::runtime_error {
  public:
    Failure(nvlm_status status, const std::string& message, std::string hint)
        : std::runtime_error(message), status_(status), hint_(std::move(hint)) {}

    nvlm_status status() const noexcept { return status_; }
    const std::string& hint() const noexcept { return hint_; }

  private:
    nvlm_status status_;
    std::string hint_;
};

namespace detail {

inline void check(nvlm_status status) {
    if (status != NVLM_OK) throw Failure(status, nvlm_last_error(), nvlm_last_hint());
}

// Ask how much there is, then for all of it. `fill` has the buffer, capacity and length of the C call.
template <class Container, class Fill>
Container filled(std::size_t terminator, Fill fill) {
    std::size_t length = 0;
    check(fill(nullptr, 0, &length));
    Container all(length + terminator, typename Container::value_type());
    check(fill(all.data(), all.size(), &length));
    all.resize(length);
    return all;
}

template <class Info>
Info sized() {
    Info info{};
    info.struct_size = sizeof(Info);
    return info;
}

}  // namespace detail

inline std::string version() {
    return nvlm_version();
}

// Ends a request from another thread.
class Cancellation {
  public:
    Cancellation() {
        nvlm_cancellation* made = nullptr;
        detail::check(nvlm_cancellation_new(&made));
        handle_.reset(made);
    }
    void cancel() noexcept { nvlm_cancel(handle_.get()); }
    void reset() noexcept { nvlm_cancellation_reset(handle_.get()); }
    nvlm_cancellation* get() const noexcept { return handle_.get(); }

  private:
    std::unique_ptr<nvlm_cancellation, void (*)(nvlm_cancellation*)> handle_{nullptr, nvlm_cancellation_free};
};

// An image of a request. Bytes and pixels are not copied: they must live as long as the request.
class Picture {
  public:
    static Picture from_path(std::string path) {
        Picture picture;
        picture.path_ = std::move(path);
        return picture;
    }
    static Picture from_file(const void* bytes, std::size_t size) {
        Picture picture;
        picture.image_.file = bytes;
        picture.image_.file_size = size;
        return picture;
    }
    // 8-bit RGB, `stride` bytes from row to row.
    static Picture from_pixels(const std::uint8_t* pixels, std::int64_t width, std::int64_t height,
                               std::size_t stride = 0) {
        Picture picture;
        picture.image_.pixels = pixels;
        picture.image_.width = width;
        picture.image_.height = height;
        picture.image_.stride = stride;
        return picture;
    }
    nvlm_image get() const {
        nvlm_image image = image_;
        if (!path_.empty()) image.path = path_.c_str();
        return image;
    }

  private:
    nvlm_image image_ = detail::sized<nvlm_image>();
    std::string path_;
};

// One prompt, its images and how to answer it; the fields are those of nvlm_request.
struct Request {
    Request() = default;
    explicit Request(std::string text) : prompt(std::move(text)) {}

    Request& add_image(std::string path) {
        images.push_back(Picture::from_path(std::move(path)));
        return *this;
    }

    std::string prompt;
    std::string messages;
    std::vector<Picture> images;
    std::vector<std::string> stop;
    std::size_t max_new_tokens = 1024;
    double temperature = 0.0;
    std::int64_t top_k = 0;
    double top_p = 1.0;
    std::uint64_t seed = 0;
    std::size_t top_logits = 0;
    Cancellation* cancellation = nullptr;
};

class Result {
  public:
    explicit Result(nvlm_result* handle) : handle_(handle, nvlm_result_free) {}

    std::string text() const {
        return detail::filled<std::string>(1, [this](char* to, std::size_t capacity, std::size_t* length) {
            return nvlm_result_text(handle_.get(), to, capacity, length);
        });
    }
    std::vector<std::int64_t> output_ids() const { return ids(0); }
    std::vector<std::int64_t> input_ids() const { return ids(1); }
    // The keys of `nvlm-build run --json`.
    std::string json() const {
        return detail::filled<std::string>(1, [this](char* to, std::size_t capacity, std::size_t* length) {
            return nvlm_result_json(handle_.get(), to, capacity, length);
        });
    }
    double timing_ms(const std::string& stage) const {
        double milliseconds = 0.0;
        detail::check(nvlm_result_timing(handle_.get(), stage.c_str(), &milliseconds));
        return milliseconds;
    }
    nvlm_result_info info() const {
        auto info = detail::sized<nvlm_result_info>();
        detail::check(nvlm_result_get_info(handle_.get(), &info));
        return info;
    }
    const nvlm_result* get() const noexcept { return handle_.get(); }

  private:
    std::vector<std::int64_t> ids(std::int32_t prompt) const {
        return detail::filled<std::vector<std::int64_t>>(
            0, [&](std::int64_t* to, std::size_t capacity, std::size_t* length) {
                return nvlm_result_tokens(handle_.get(), prompt, to, capacity, length);
            });
    }

    std::unique_ptr<nvlm_result, void (*)(nvlm_result*)> handle_;
};

// The fields are those of nvlm_engine_options.
struct EngineOptions {
    int threads = 0;
    bool mapped = false;
    bool verify_digests = true;
    bool require_verified = false;
    std::int64_t image_cache_bytes = 0;
    std::string device = "cpu";
    std::string library;
};

// Takes the next piece of an answer. What it throws ends the request and comes out of `generate`.
using TextCallback = std::function<void(std::string_view)>;

class Engine {
  public:
    explicit Engine(const std::string& bundle, const EngineOptions& options = {}) {
        auto given = detail::sized<nvlm_engine_options>();
        given.threads = options.threads;
        given.mapped = options.mapped ? 1 : 0;
        given.skip_digests = options.verify_digests ? 0 : 1;
        given.require_verified = options.require_verified ? 1 : 0;
        given.image_cache_bytes = options.image_cache_bytes;
        given.device = options.device.c_str();
        given.library = options.library.empty() ? nullptr : options.library.c_str();
        nvlm_engine* opened = nullptr;
        detail::check(nvlm_engine_open(bundle.c_str(), &given, &opened));
        handle_.reset(opened);
    }

    Result generate(const Request& request) const {
        return with(request, [&](const nvlm_request& given, nvlm_result** result) {
            return nvlm_generate(handle_.get(), &given, result);
        });
    }

    Result generate(const Request& request, const TextCallback& on_text) const {
        Listener listener{on_text, nullptr};
        try {
            return with(request, [&](const nvlm_request& given, nvlm_result** result) {
                return nvlm_generate_stream(handle_.get(), &given, listen, &listener, result);
            });
        } catch (const Failure&) {
            if (listener.thrown) std::rethrow_exception(listener.thrown);
            throw;
        }
    }

    // 8-bit RGB tiles [tiles, S, S, 3], the thumbnail last.
    std::vector<std::uint8_t> tile(const Picture& picture) const {
        const nvlm_image image = picture.get();
        return detail::filled<std::vector<std::uint8_t>>(
            0, [&](std::uint8_t* to, std::size_t capacity, std::size_t* length) {
                return nvlm_tile(handle_.get(), &image, to, capacity, length, nullptr, nullptr);
            });
    }

    std::vector<std::int64_t> tokenize(const std::string& text) const {
        return detail::filled<std::vector<std::int64_t>>(
            0, [&](std::int64_t* to, std::size_t capacity, std::size_t* length) {
                return nvlm_tokenize(handle_.get(), text.c_str(), to, capacity, length);
            });
    }

    std::string detokenize(const std::vector<std::int64_t>& ids) const {
        return detail::filled<std::string>(1, [&](char* to, std::size_t capacity, std::size_t* length) {
            return nvlm_detokenize(handle_.get(), ids.data(), ids.size(), to, capacity, length);
        });
    }

    // Encode an image before it is asked about.
    void prefetch(const Picture& picture, Cancellation* cancellation = nullptr) const {
        const nvlm_image image = picture.get();
        detail::check(nvlm_cache_prefetch(handle_.get(), &image,
                                          cancellation == nullptr ? nullptr : cancellation->get()));
    }

    nvlm_engine_info info() const {
        auto info = detail::sized<nvlm_engine_info>();
        detail::check(nvlm_engine_get_info(handle_.get(), &info));
        return info;
    }
    nvlm_cache_info cache_info() const {
        auto info = detail::sized<nvlm_cache_info>();
        detail::check(nvlm_cache_get_info(handle_.get(), &info));
        return info;
    }
    void clear_cache() const { detail::check(nvlm_cache_clear(handle_.get())); }
    nvlm_engine* get() const noexcept { return handle_.get(); }

  private:
    struct Listener {
        const TextCallback& on_text;
        std::exception_ptr thrown;
    };

    static int listen(const char* text, std::size_t length, void* user) {
        auto* listener = static_cast<Listener*>(user);
        try {
            listener->on_text(std::string_view(text, length));
            return 0;
        } catch (...) {
            listener->thrown = std::current_exception();
            return 1;
        }
    }

    template <class Call>
    Result with(const Request& request, Call call) const {
        std::vector<nvlm_image> images;
        std::vector<const char*> stop;
        for (const Picture& picture : request.images) images.push_back(picture.get());
        for (const std::string& text : request.stop) stop.push_back(text.c_str());
        auto given = detail::sized<nvlm_request>();
        (request.messages.empty() ? given.prompt : given.messages) =
            request.messages.empty() ? request.prompt.c_str() : request.messages.c_str();
        given.images = images.data();
        given.image_count = images.size();
        given.max_new_tokens = request.max_new_tokens;
        given.stop = stop.data();
        given.stop_count = stop.size();
        given.temperature = request.temperature;
        given.top_k = request.top_k;
        given.top_p = request.top_p;
        given.seed = request.seed;
        given.top_logits = request.top_logits;
        given.cancellation = request.cancellation == nullptr ? nullptr : request.cancellation->get();
        nvlm_result* result = nullptr;
        detail::check(call(given, &result));
        return Result(result);
    }

    std::unique_ptr<nvlm_engine, void (*)(nvlm_engine*)> handle_{nullptr, nvlm_engine_close};
};

}  // namespace v1
}  // namespace nvlm

#endif
