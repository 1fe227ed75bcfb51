#include "session/ort_session.hpp"

#include <algorithm>

#include "error.hpp"
#include "session/ort_encoders.hpp"
#include "session/ort_kv_cache.hpp"
#include "session/ort_run.hpp"

namespace nvlm {

namespace {

// Longer prompts are computed in pieces of so many tokens, which bounds their memory.
constexpr std::size_t prefill_chunk = 256;

class OrtDecoderSession final : public DecoderSession {
  public:
    OrtDecoderSession(const OrtLibrary& library, const std::string& path, const SessionOptions& options)
        : graph_(library, path, options) {
        while (graph_.facts().inputs.contains("past_key." + std::to_string(layers_))) ++layers_;
        const std::vector<std::int64_t>& visual = graph_.input("visual_tokens").shape;
        for (const OrtPort& port : graph_.outputs()) {
            if (port.name == "logits" && port.shape.size() == 3) vocab_size_ = elements(port, 2);
        }
        if (layers_ == 0 || vocab_size_ == 0 || visual.size() != 2 || visual[1] < 1 || !caches_fit()) {
            throw Error(Status::failure, path + " is no decoder graph", "build the bundle again");
        }
        hidden_size_ = static_cast<std::size_t>(visual[1]);
    }

    const GraphFacts& facts() const override { return graph_.facts(); }
    std::size_t hidden_size() const override { return hidden_size_; }
    std::size_t vocab_size() const override { return vocab_size_; }

    std::unique_ptr<KvCache> new_cache(std::size_t capacity) const override {
        return std::make_unique<OrtKvCache>(graph_, layers_, vocab_size_, capacity);
    }

    const float* run(const DecoderStep& step, KvCache& cache, Cancellation& cancellation) const override {
        auto& mine = static_cast<OrtKvCache&>(cache);
        if (step.count < 1 || mine.length() + step.count > mine.capacity()) {
            throw Error(Status::failure, std::to_string(mine.length() + step.count) +
                                             " tokens do not fit into a cache of " +
                                             std::to_string(mine.capacity()));
        }
        std::size_t seen = 0;
        std::vector<std::int64_t> positions;
        for (std::size_t start = 0; start < step.count; start += prefill_chunk) {
            const std::size_t stop = std::min(start + prefill_chunk, step.count);
            positions.clear();
            const std::size_t first = seen;
            while (seen < step.visual_count && step.visual_positions[seen] < as_dimension(stop)) {
                positions.push_back(step.visual_positions[seen++] - as_dimension(start));
            }
            const DecoderStep piece = {step.ids + start,
                                       stop - start,
                                       step.visual_tokens + first * hidden_size_,
                                       positions.data(),
                                       positions.size(),
                                       step.tiles,
                                       step.tiles == nullptr ? nullptr : step.visible + start};
            mine.run(piece, hidden_size_, stop == step.count, cancellation);
        }
        return mine.logits();
    }

  private:
    // Keys and values, of tokens and of tiles, are [rows, heads, entries, numbers].
    bool caches_fit() const {
        for (OrtPort port : graph_.inputs()) {
            if (port.name.rfind("past_", 0) != 0 && port.name.rfind("tile_", 0) != 0) continue;
            if (port.name == "past_lengths") continue;
            if (port.shape.size() != 4) return false;
            port.shape[2] = 1;
            elements(port, 1);
        }
        return true;
    }

    OrtGraph graph_;
    std::size_t layers_ = 0;
    std::size_t vocab_size_ = 0;
    std::size_t hidden_size_ = 0;
};

}  // namespace

Sessions open_ort_sessions(const Bundle& bundle, const SessionOptions& options) {
    if (options.device != "cpu") {
        throw Error(
            Status::unsuitable,
            "the native runtime runs engines of onnxruntime on the CPU, not on '" + options.device + "'",
            "use device cpu, or open the bundle in Python");
    }
    const OrtLibrary& library = OrtLibrary::open(options.library);
    const Manifest& manifest = bundle.manifest;
    Sessions sessions;
    sessions.vision = open_ort_vision(library, manifest.model_path("vision"), options);
    sessions.decoder = std::make_unique<OrtDecoderSession>(library, manifest.model_path("llm"), options);
    if (bundle.config.variant != 'D') {
        sessions.tiles = open_ort_tiles(library, bundle, options);
    }
    return sessions;
}

}  // namespace nvlm
