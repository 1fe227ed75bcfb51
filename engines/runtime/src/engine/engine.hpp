// An engine bundle opened for generation. Every method but the destructor may be called by several threads.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/cancellation.hpp"
#include "engine/answer.hpp"
#include "engine/encoder.hpp"
#include "engine/request.hpp"
#include "session/session.hpp"
#include "text/prompt.hpp"

namespace nvlm {

struct EngineOptions {
    BundleOptions bundle;
    SessionOptions session;
    std::size_t image_cache_bytes = std::size_t{256} << 20U;
};

class Engine {
  public:
    // Throws Error as Bundle::open and open_sessions.
    static std::unique_ptr<Engine> open(const std::string& directory, const EngineOptions& options);

    // Answer one request. Throws Error: usage for images that do not fit the prompt, a prompt longer than the
    // context or bad settings; failure for an image that cannot be read; cancelled.
    Result generate(const Request& request, Cancellation& cancellation);

    // Encode an image, so that the first prompt about it finds it in the cache. Returns how many tiles it
    // has.
    std::size_t prefetch(const ImageInput& image, Cancellation& cancellation);

    TiledImage tile(const ImageInput& image) const;
    const Bundle& bundle() const noexcept { return bundle_; }
    const Tokenizer& tokenizer() const noexcept { return prompts_.tokenizer(); }
    ImageCache& image_cache() noexcept { return encoder_.cache(); }

  private:
    struct Prepared {
        std::vector<TiledImage> images;
        Prompt prompt;
        std::size_t max_new_tokens = 0;
    };

    // What the decoder takes of a request's images. `tiles`: null without cross-attention or images.
    struct Seen {
        std::vector<float> visual;
        std::shared_ptr<const TileStates> tiles;
    };

    Engine(Bundle bundle, PromptBuilder prompts, Sessions sessions, std::size_t image_cache_bytes);

    Prepared prepare(const Request& request, StageTimer& timer) const;
    Seen look_at(const std::vector<TiledImage>& images, Cancellation& cancellation);
    void generate_inflight(const Request& request, const Prepared& prepared, const std::vector<float>& visual,
                           Answer& answer, StageTimer& timer, Cancellation& cancellation);
    static Result finish(const Prepared& prepared, Answer& answer, const StageTimer& timer);

    Bundle bundle_;
    PromptBuilder prompts_;
    Sessions sessions_;
    ImageEncoder encoder_;
    TileRule tile_rule_;
};

}  // namespace nvlm
