// Keys and values of one prompt, bound to the decoder's graph.
//
// Shapes: D hidden size, G KV heads, K head size, C capacity, L entries of tiles.

#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "session/ort_graph.hpp"

namespace nvlm {

// One key and one value buffer per layer, [1, G, C, K], bound to the graph's past inputs and present outputs:
// a step binds nothing but its own small tensors, and a step of the same form binds nothing at all. Keys and
// values of tiles are bound once.
class OrtKvCache final : public KvCache {
  public:
    OrtKvCache(const OrtGraph& graph, std::size_t layers, std::size_t vocab_size, std::size_t capacity);

    std::size_t length() const override { return static_cast<std::size_t>(past_[0]); }
    std::size_t capacity() const override { return capacity_; }

    // Run one piece; `wanted`: make the logits behind its last token. Throws Error: failure, or cancelled.
    void run(const DecoderStep& step, std::size_t hidden_size, bool wanted, Cancellation& cancellation);

    const float* logits() const { return logits_.data(); }

  private:
    struct FreeMemory {
        void operator()(void* memory) const noexcept { std::free(memory); }
    };

    void bind_cache(const std::string& name);
    void bind_tiles(const TileStates* tiles);
    void bind_step(const DecoderStep& step, std::size_t hidden_size, bool wanted);
    void bind_visible(const DecoderStep& step, bool single);
    void bind_input(const std::string& name, const OrtValue* value);
    void bind_output(const std::string& name, const OrtValue* value);
    void add(const char* name, void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
             ONNXTensorElementDataType type);

    const OrtGraph& graph_;
    std::size_t capacity_;
    std::vector<std::unique_ptr<void, FreeMemory>> buffers_;
    std::vector<OrtPtr<OrtValue>> values_;
    OrtPtr<OrtIoBinding> binding_;
    OrtPtr<OrtRunOptions> run_options_;
    std::vector<OrtPtr<OrtValue>> step_values_;
    bool single_bound_ = false;
    bool has_cross_attention_ = false;
    bool tiles_bound_ = false;
    std::int64_t id_[1] = {0};
    std::int32_t past_[1] = {0};
    std::int32_t new_[1] = {0};
    std::int64_t position_[1] = {0};
    TileRange single_visible_{0, 0};
    std::vector<std::int64_t> index_;
    std::vector<TileRange> nothing_visible_;
    std::vector<float> logits_;
};

}  // namespace nvlm
