#include "engine/engine.hpp"

#include <algorithm>
#include <utility>

#include "engine/answer.hpp"
#include "engine/seen_tiles.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

PromptSettings prompt_settings(const Bundle& bundle) {
    const ModelConfig& config = bundle.config;
    PromptSettings settings;
    settings.variant = config.variant == 'X' ? Variant::x : config.variant == 'H' ? Variant::h : Variant::d;
    settings.mode = tokenization_mode(bundle.manifest.prompt_mode());
    settings.visual_tokens_per_tile = config.visual_tokens_per_tile;
    settings.vocab_size = config.vocab_size;
    settings.thumbnail_tag = config.thumbnail_tag;
    return settings;
}

TileRule tile_rule_of(const ModelConfig& config) {
    return {static_cast<int>(config.tile_size), static_cast<int>(config.min_tiles),
            static_cast<int>(config.max_tiles)};
}

// How many tokens may follow a prompt in the engine's context.
std::size_t room(std::size_t context, std::size_t prompt, std::size_t max_new_tokens) {
    if (prompt >= context) {
        throw Error(
            Status::usage,
            "the prompt has " + std::to_string(prompt) + " tokens and the engine's context is " +
                std::to_string(context),
            "shorten the prompt, send fewer or less elongated images, or rebuild the engine with a larger "
            "context: --set target.max_context=N");
    }
    return std::min(max_new_tokens, context - prompt);
}

// Images in the order of their places in a chat; those that messages bring are files.
std::vector<ImageInput> chat_images(const std::vector<Turn>& turns, const std::vector<ImageInput>& passed) {
    std::vector<ImageInput> images;
    for (const ImageSource& source : gather_images(turns, passed.size())) {
        if (const auto* path = std::get_if<std::string>(&source)) {
            images.emplace_back();
            images.back().path = *path;
        } else {
            images.push_back(passed[std::get<std::size_t>(source)]);
        }
    }
    return images;
}

DecoderStep first_step(const Prompt& prompt, const std::vector<float>& visual, const TileStates* tiles) {
    DecoderStep step;
    step.ids = prompt.input_ids.data();
    step.count = prompt.input_ids.size();
    step.visual_tokens = visual.data();
    step.visual_positions = prompt.visual_positions.data();
    step.visual_count = prompt.visual_positions.size();
    step.tiles = tiles;
    // Tiles without a prompt that knows them would be those of another model.
    if (tiles != nullptr) step.visible = prompt.cross.value().visible.data();
    return step;
}

void finish_timings(Result& result, const StageTimer& timer) {
    result.timings = timer.stages();
    const auto steps = static_cast<double>(result.output_ids.size()) - 1;
    const double decode = timer.of("decode");
    if (decode == 0.0) result.timings.emplace_back("decode", 0.0);
    result.timings.emplace_back("per_token", steps > 0 ? decode / steps : 0.0);
    result.timings.emplace_back("total", timer.elapsed_ms());
}

}  // namespace

std::unique_ptr<Engine> Engine::open(const std::string& directory, const EngineOptions& options) {
    Bundle bundle = Bundle::open(directory, options.bundle);
    PromptBuilder prompts(Tokenizer::from_file(directory + "/tokenizer.json"), prompt_settings(bundle));
    Sessions sessions = open_sessions(bundle, options.session);
    return std::unique_ptr<Engine>(
        new Engine(std::move(bundle), std::move(prompts), std::move(sessions), options.image_cache_bytes));
}

Engine::Engine(Bundle bundle, PromptBuilder prompts, Sessions sessions, std::size_t image_cache_bytes)
    : bundle_(std::move(bundle)),
      prompts_(std::move(prompts)),
      sessions_(std::move(sessions)),
      encoder_(bundle_.config, sessions_, image_cache_bytes),
      tile_rule_(tile_rule_of(bundle_.config)) {}

TiledImage Engine::tile(const ImageInput& image) const {
    return tile_image(image.decode("the image"), tile_rule_);
}

std::size_t Engine::prefetch(const ImageInput& image, Cancellation& cancellation) {
    const TiledImage tiled = tile(image);
    encoder_.encode(tiled, cancellation);
    return tiled.tiles();
}

Engine::Prepared Engine::prepare(const Request& request, StageTimer& timer) const {
    Prepared prepared;
    std::vector<std::int64_t> tiles_per_image;
    const std::vector<Turn> turns = request.is_chat ? parse_messages(request.prompt) : std::vector<Turn>();
    {
        const StageTimer::Stage stage(timer, "tile");
        const std::vector<ImageInput> images =
            request.is_chat ? chat_images(turns, request.images) : request.images;
        for (std::size_t i = 0; i < images.size(); ++i) {
            const Image image = images[i].decode("image " + std::to_string(i + 1));
            prepared.images.push_back(tile_image(image, tile_rule_));
            tiles_per_image.push_back(static_cast<std::int64_t>(prepared.images.back().tiles()));
        }
    }
    const StageTimer::Stage stage(timer, "tokenize");
    prepared.prompt = request.is_chat ? prompts_.build(turns, tiles_per_image)
                                      : prompts_.build(request.prompt, tiles_per_image);
    prepared.max_new_tokens = room(static_cast<std::size_t>(bundle_.manifest.context()),
                                   prepared.prompt.input_ids.size(), request.max_new_tokens);
    return prepared;
}

Engine::Seen Engine::look_at(const std::vector<TiledImage>& images, Cancellation& cancellation) {
    std::vector<SharedImage> encoded;
    Seen seen;
    for (const TiledImage& image : images) {
        encoded.push_back(encoder_.encode(image, cancellation));
        const std::vector<float>& visual = encoded.back()->visual;
        seen.visual.insert(seen.visual.end(), visual.begin(), visual.end());
    }
    seen.tiles = lay_out(encoded);
    return seen;
}

Result Engine::generate(const Request& request, Cancellation& cancellation) {
    request.check();
    StageTimer timer;
    const Prepared prepared = prepare(request, timer);
    const Prompt& prompt = prepared.prompt;
    Seen seen;
    {
        const StageTimer::Stage stage(timer, "vision");
        seen = look_at(prepared.images, cancellation);
    }
    const TileStates* const tiles = seen.tiles.get();
    Answer answer(request, tokenizer(), prepared.max_new_tokens);
    if (sessions_.inflight) {
        generate_inflight(request, prepared, seen.visual, answer, timer, cancellation);
        return finish(prepared, answer, timer);
    }
    const std::unique_ptr<KvCache> cache =
        sessions_.decoder->new_cache(prompt.input_ids.size() + prepared.max_new_tokens);
    const float* logits = nullptr;
    {
        const StageTimer::Stage stage(timer, "prefill");
        logits = sessions_.decoder->run(first_step(prompt, seen.visual, tiles), *cache, cancellation);
    }
    // What is behind the prompt stands behind all images.
    const TileRange all_tiles(0, tiles == nullptr ? 0 : tiles->tile_count());
    for (bool first = true;; first = false) {
        const std::string piece = answer.accept(logits, sessions_.decoder->vocab_size());
        if (first) timer.add("first_token", timer.elapsed_ms());
        if (!piece.empty() && request.on_text) request.on_text(piece);
        if (answer.finished()) break;
        const StageTimer::Stage stage(timer, "decode");
        const std::int64_t last = answer.last_id();
        logits =
            sessions_.decoder->run({&last, 1, nullptr, nullptr, 0, tiles, &all_tiles}, *cache, cancellation);
    }
    return finish(prepared, answer, timer);
}

Result Engine::finish(const Prepared& prepared, Answer& answer, const StageTimer& timer) {
    Result& result = answer.result();
    result.input_ids = prepared.prompt.input_ids;
    for (const TiledImage& image : prepared.images) result.images.push_back({image.grid, image.crc32});
    finish_timings(result, timer);
    return std::move(result);
}

}  // namespace nvlm
