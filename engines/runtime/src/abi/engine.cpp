// Engines and requests.

#include <utility>

#include "abi/handles.hpp"

using namespace nvlm;
using namespace nvlm::abi;

namespace nvlm::abi {

ImageInput image_input(const nvlm_image* image) {
    const nvlm_image given = read_struct(image, "image");
    ImageInput input;
    input.path = text_or(given.path, "");
    input.file = {static_cast<const std::uint8_t*>(given.file), given.file_size};
    input.pixels = given.pixels;
    input.width = given.width;
    input.height = given.height;
    input.stride = given.stride;
    return input;
}

}  // namespace nvlm::abi

namespace {

constexpr std::size_t default_max_new_tokens = 1024;
// More than any machine has; the backend would start every one that it is asked for.
constexpr std::int32_t max_threads = 4096;

EngineOptions engine_options(const nvlm_engine_options* options) {
    EngineOptions read;
    if (options == nullptr) return read;
    const nvlm_engine_options given = read_struct(options, "options");
    if (given.threads < 0 || given.threads > max_threads) {
        throw Error(Status::usage, "threads is " + std::to_string(given.threads) + "; it must be 0 to " +
                                       std::to_string(max_threads));
    }
    read.bundle.verify_digests = given.skip_digests == 0;
    read.bundle.require_verified = given.require_verified != 0;
    read.session.threads = given.threads;
    read.session.mapped = given.mapped != 0;
    read.session.device = text_or(given.device, "cpu");
    read.session.library = text_or(given.library, "");
    if (given.image_cache_bytes > 0)
        read.image_cache_bytes = static_cast<std::size_t>(given.image_cache_bytes);
    if (given.image_cache_bytes < 0) read.image_cache_bytes = 0;
    return read;
}

SamplingParameters sampling_of(const nvlm_request& given) {
    SamplingParameters sampling;
    sampling.temperature = given.temperature;
    sampling.top_k = given.top_k;
    sampling.top_p = given.top_p == 0.0 ? 1.0 : given.top_p;
    sampling.seed = given.seed;
    return sampling;
}

// The images' elements are as far apart as the first one's struct_size says.
std::vector<ImageInput> images_of(const nvlm_request& given) {
    std::vector<ImageInput> images;
    if (given.image_count == 0) return images;
    require(given.images, "request.images");
    const auto* bytes = reinterpret_cast<const unsigned char*>(given.images);
    const std::size_t step = given.images->struct_size;
    for (std::size_t i = 0; i < given.image_count; ++i) {
        images.push_back(image_input(reinterpret_cast<const nvlm_image*>(bytes + i * step)));
    }
    return images;
}

Request request_of(const nvlm_request& given) {
    if ((given.prompt == nullptr) == (given.messages == nullptr)) {
        throw Error(Status::usage, "a request has either a prompt or messages");
    }
    Request request;
    request.is_chat = given.messages != nullptr;
    request.prompt = request.is_chat ? given.messages : given.prompt;
    request.images = images_of(given);
    request.max_new_tokens = given.max_new_tokens == 0 ? default_max_new_tokens : given.max_new_tokens;
    if (given.stop_count > 0) require(given.stop, "request.stop");
    for (std::size_t i = 0; i < given.stop_count; ++i) {
        require(given.stop[i], "request.stop[i]");
        request.stop.emplace_back(given.stop[i]);
    }
    request.sampling = sampling_of(given);
    request.top_logits = given.top_logits;
    return request;
}

void generate(nvlm_engine* engine, const nvlm_request* request, nvlm_text_callback callback, void* user,
              nvlm_result** result) {
    require(result, "result");
    *result = nullptr;
    Engine& opened = engine_of(engine);
    const nvlm_request given = read_struct(request, "request");
    Request wanted = request_of(given);
    Cancellation own;
    Cancellation& cancellation = given.cancellation == nullptr ? own : given.cancellation->cancellation;
    bool stopped = false;
    if (callback != nullptr) {
        wanted.on_text = [&](std::string_view piece) {
            stopped = callback(piece.data(), piece.size(), user) != 0;
            if (stopped) cancellation.cancel();
        };
    }
    auto made = std::make_unique<nvlm_result>();
    made->result = opened.generate(wanted, cancellation);
    // The callback may have had enough at the very last piece.
    if (stopped) cancellation.throw_if_requested();
    *result = made.release();
}

}  // namespace

nvlm_status nvlm_engine_open(const char* bundle, const nvlm_engine_options* options, nvlm_engine** engine) {
    return guard("nvlm_engine_open", [&] {
        require(engine, "engine");
        *engine = nullptr;
        require(bundle, "bundle");
        auto handle = std::make_unique<nvlm_engine>();
        handle->engine = Engine::open(bundle, engine_options(options));
        *engine = handle.release();
    });
}

void nvlm_engine_close(nvlm_engine* engine) {
    guard("nvlm_engine_close", [&] { delete engine; });
}

nvlm_status nvlm_engine_get_info(const nvlm_engine* engine, nvlm_engine_info* info) {
    return guard("nvlm_engine_get_info", [&] {
        const Bundle& bundle = engine_of(engine).bundle();
        nvlm_engine_info filled{};
        filled.tile_size = static_cast<std::int32_t>(bundle.config.tile_size);
        filled.max_tiles = static_cast<std::int32_t>(bundle.config.max_tiles);
        filled.visual_tokens_per_tile = static_cast<std::int32_t>(bundle.config.visual_tokens_per_tile);
        filled.context = static_cast<std::int32_t>(bundle.manifest.context());
        filled.vocab_size = static_cast<std::int32_t>(bundle.config.vocab_size);
        filled.variant = bundle.config.variant;
        write_struct(filled, info, "info");
    });
}

nvlm_status nvlm_generate(nvlm_engine* engine, const nvlm_request* request, nvlm_result** result) {
    return guard("nvlm_generate", [&] { generate(engine, request, nullptr, nullptr, result); });
}

nvlm_status nvlm_generate_stream(nvlm_engine* engine, const nvlm_request* request,
                                 nvlm_text_callback callback, void* user, nvlm_result** result) {
    return guard("nvlm_generate_stream", [&] {
        if (callback == nullptr) throw Error(Status::usage, "callback is NULL", "use nvlm_generate");
        generate(engine, request, callback, user, result);
    });
}

nvlm_status nvlm_cancellation_new(nvlm_cancellation** cancellation) {
    return guard("nvlm_cancellation_new", [&] {
        require(cancellation, "cancellation");
        *cancellation = std::make_unique<nvlm_cancellation>().release();
    });
}

void nvlm_cancellation_reset(nvlm_cancellation* cancellation) {
    guard("nvlm_cancellation_reset", [&] {
        if (cancellation != nullptr) cancellation->cancellation.reset();
    });
}

void nvlm_cancellation_free(nvlm_cancellation* cancellation) {
    guard("nvlm_cancellation_free", [&] { delete cancellation; });
}

void nvlm_cancel(nvlm_cancellation* cancellation) {
    guard("nvlm_cancel", [&] {
        if (cancellation != nullptr) cancellation->cancellation.cancel();
    });
}
