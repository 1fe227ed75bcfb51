// Shapes: S new tokens, V visual tokens among them, D hidden size, G KV heads, K head size, C capacity.

#include "session/ort_session.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "error.hpp"
#include "session/ort_graph.hpp"

namespace nvlm {

namespace {

// Longer prompts are computed in pieces of so many tokens, which bounds their memory.
constexpr std::size_t prefill_chunk = 256;

constexpr auto float32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto int64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto int32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;

std::int64_t as_dimension(std::size_t size) {
    return static_cast<std::int64_t>(size);
}

// A call that ends early when its request is cancelled.
template <class Call>
void run_cancellable(const OrtGraph& graph, OrtRunOptions* options, Cancellation& cancellation, Call call) {
    const OrtApi& api = graph.library().api();
    cancellation.throw_if_requested();
    OrtStatus* status = nullptr;
    {
        const Cancellation::Scope scope(cancellation, [&] {
            if (OrtStatus* ignored = api.RunOptionsSetTerminate(options)) api.ReleaseStatus(ignored);
        });
        status = call();
    }
    if (status != nullptr && cancellation.requested()) {
        api.ReleaseStatus(status);
        cancellation.throw_if_requested();
    }
    graph.library().check(status, "ONNX Runtime failed");
}

class OrtVisionSession : public VisionSession {
  public:
    OrtVisionSession(const OrtLibrary& library, const std::string& path, const SessionOptions& options)
        : graph_(library, path, options), tile_(graph_.input("tiles")) {
        if (tile_.shape.size() != 4 || graph_.outputs().size() != 1 ||
            graph_.outputs()[0].shape.size() != 3) {
            throw Error(Status::failure, path + " is no vision graph", "build the bundle again");
        }
        tile_.shape[0] = 1;
        token_ = graph_.outputs()[0];
        token_.shape[0] = 1;
        if (*std::min_element(tile_.shape.begin(), tile_.shape.end()) < 1 ||
            *std::min_element(token_.shape.begin(), token_.shape.end()) < 1) {
            throw Error(Status::failure, path + " has tiles without a size", "build the bundle again");
        }
    }

    const GraphFacts& facts() const override { return graph_.facts(); }
    std::size_t floats_per_tile() const override {
        return static_cast<std::size_t>(token_.shape[1] * token_.shape[2]);
    }

    // One tile after the other: several at once are no faster on a CPU.
    void encode(const std::uint8_t* tiles, std::size_t count, float* tokens,
                Cancellation& cancellation) const override {
        const auto tile_bytes = static_cast<std::size_t>(tile_.shape[1] * tile_.shape[2] * tile_.shape[3]);
        const OrtPtr<OrtRunOptions> run_options = graph_.new_run_options();
        for (std::size_t i = 0; i < count; ++i) {
            // The library reads inputs only; its type for tensors has no const.
            auto* pixels = const_cast<std::uint8_t*>(tiles + i * tile_bytes);
            const OrtPtr<OrtValue> in = graph_.tensor(pixels, tile_bytes, tile_.shape, tile_.type);
            const OrtPtr<OrtValue> out = graph_.tensor(
                tokens + i * floats_per_tile(), floats_per_tile() * sizeof(float), token_.shape, float32);
            const char* in_name = tile_.name.c_str();
            const char* out_name = token_.name.c_str();
            const OrtValue* in_value = in.get();
            OrtValue* out_value = out.get();
            run_cancellable(graph_, run_options.get(), cancellation, [&] {
                return graph_.library().api().Run(graph_.session(), run_options.get(), &in_name, &in_value, 1,
                                                  &out_name, 1, &out_value);
            });
        }
    }

  private:
    OrtGraph graph_;
    OrtPort tile_;
    OrtPort token_;
};

struct FreeMemory {
    void operator()(void* memory) const noexcept { std::free(memory); }
};

// One key and one value buffer per layer, [1, G, C, K], bound to the graph's past inputs and present outputs:
// a step binds nothing but its own small tensors, and a step of the same form binds nothing at all.
class OrtKvCache : public KvCache {
  public:
    OrtKvCache(const OrtGraph& graph, std::size_t layers, std::size_t vocab_size, std::size_t capacity)
        : graph_(graph),
          capacity_(capacity),
          binding_(nullptr, graph.library().api().ReleaseIoBinding),
          run_options_(graph.new_run_options()),
          logits_(vocab_size) {
        const OrtApi& api = graph.library().api();
        OrtIoBinding* binding = nullptr;
        graph.library().check(api.CreateIoBinding(graph.session(), &binding), "ONNX Runtime failed");
        binding_.reset(binding);
        for (std::size_t layer = 0; layer < layers; ++layer) {
            bind_cache("key." + std::to_string(layer));
            bind_cache("value." + std::to_string(layer));
        }
    }

    std::size_t length() const override { return static_cast<std::size_t>(past_[0]); }
    std::size_t capacity() const override { return capacity_; }

    // Run one piece; `wanted`: make the logits behind its last token.
    void run(const DecoderStep& step, std::size_t hidden_size, bool wanted, Cancellation& cancellation) {
        bind_step(step, hidden_size, wanted);
        run_cancellable(graph_, run_options_.get(), cancellation, [&] {
            return graph_.library().api().RunWithBinding(graph_.session(), run_options_.get(),
                                                         binding_.get());
        });
        past_[0] += new_[0];
    }

    const float* logits() const { return logits_.data(); }

  private:
    void bind_cache(const std::string& name) {
        const OrtPort& port = graph_.input("past_" + name);
        const std::vector<std::int64_t> shape = {1, port.shape[1], as_dimension(capacity_), port.shape[3]};
        const std::size_t bytes =
            static_cast<std::size_t>(shape[1] * shape[2] * shape[3]) * element_bytes(port.type);
        // Zeros, because a kernel may multiply what lies behind the end with a probability of zero.
        buffers_.emplace_back(std::calloc(bytes, 1));
        if (!buffers_.back()) throw std::bad_alloc();
        values_.push_back(graph_.tensor(buffers_.back().get(), bytes, shape, port.type));
        bind_input("past_" + name, values_.back().get());
        bind_output("present_" + name, values_.back().get());
    }

    void bind_input(const std::string& name, const OrtValue* value) {
        graph_.library().check(graph_.library().api().BindInput(binding_.get(), name.c_str(), value),
                               "ONNX Runtime failed");
    }

    void bind_output(const std::string& name, const OrtValue* value) {
        graph_.library().check(graph_.library().api().BindOutput(binding_.get(), name.c_str(), value),
                               "ONNX Runtime failed");
    }

    // Steps of one token have their memory here, so that the second and later ones are bound already.
    void bind_step(const DecoderStep& step, std::size_t hidden_size, bool wanted) {
        const bool single = step.count == 1 && step.visual_count == 0 && wanted;
        new_[0] = static_cast<std::int32_t>(step.count);
        position_[0] = as_dimension(step.count) - 1;
        if (single) {
            id_[0] = step.ids[0];
            if (single_bound_) return;
        }
        single_bound_ = single;
        step_values_.clear();
        index_.clear();
        for (std::size_t i = 0; i < step.visual_count; ++i) {
            index_.push_back(0);
            index_.push_back(step.visual_positions[i]);
        }
        const std::int64_t count = as_dimension(step.count), visual = as_dimension(step.visual_count);
        const std::int64_t places = wanted ? 1 : 0;
        auto* ids = single ? id_ : const_cast<std::int64_t*>(step.ids);
        add("input_ids", ids, step.count * sizeof(std::int64_t), {1, count}, int64);
        add("past_lengths", past_, sizeof past_, {1}, int32);
        add("new_lengths", new_, sizeof new_, {1}, int32);
        add("visual_tokens", const_cast<float*>(step.visual_tokens),
            step.visual_count * hidden_size * sizeof(float), {visual, as_dimension(hidden_size)}, float32);
        add("visual_index", index_.data(), index_.size() * sizeof(std::int64_t), {visual, 2}, int64);
        add("logit_positions", position_, wanted ? sizeof position_ : 0, {1, places}, int64);
        step_values_.push_back(graph_.tensor(logits_.data(), wanted ? logits_.size() * sizeof(float) : 0,
                                             {1, places, as_dimension(logits_.size())}, float32));
        bind_output("logits", step_values_.back().get());
    }

    void add(const char* name, void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
             ONNXTensorElementDataType type) {
        step_values_.push_back(graph_.tensor(data, bytes, shape, type));
        bind_input(name, step_values_.back().get());
    }

    const OrtGraph& graph_;
    std::size_t capacity_;
    std::vector<std::unique_ptr<void, FreeMemory>> buffers_;
    std::vector<OrtPtr<OrtValue>> values_;
    OrtPtr<OrtIoBinding> binding_;
    OrtPtr<OrtRunOptions> run_options_;
    std::vector<OrtPtr<OrtValue>> step_values_;
    bool single_bound_ = false;
    std::int64_t id_[1] = {0};
    std::int32_t past_[1] = {0};
    std::int32_t new_[1] = {0};
    std::int64_t position_[1] = {0};
    std::vector<std::int64_t> index_;
    std::vector<float> logits_;
};

class OrtDecoderSession : public DecoderSession {
  public:
    OrtDecoderSession(const OrtLibrary& library, const std::string& path, const SessionOptions& options)
        : graph_(library, path, options) {
        while (graph_.facts().inputs.contains("past_key." + std::to_string(layers_))) ++layers_;
        const std::vector<std::int64_t>& visual = graph_.input("visual_tokens").shape;
        for (const OrtPort& port : graph_.outputs()) {
            if (port.name == "logits" && port.shape.size() == 3)
                vocab_size_ = static_cast<std::size_t>(port.shape[2]);
        }
        if (layers_ == 0 || vocab_size_ == 0 || visual.size() != 2 || visual[1] < 1 ||
            graph_.input("past_key.0").shape.size() != 4) {
            throw Error(Status::failure, path + " is no decoder graph", "build the bundle again");
        }
        hidden_size_ = static_cast<std::size_t>(visual[1]);
    }

    const GraphFacts& facts() const override { return graph_.facts(); }
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
            const DecoderStep piece = {step.ids + start, stop - start,
                                       step.visual_tokens + first * hidden_size_, positions.data(),
                                       positions.size()};
            mine.run(piece, hidden_size_, stop == step.count, cancellation);
        }
        return mine.logits();
    }

  private:
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
    return {std::make_unique<OrtVisionSession>(library, bundle.manifest.model_path("vision"), options),
            std::make_unique<OrtDecoderSession>(library, bundle.manifest.model_path("llm"), options)};
}

}  // namespace nvlm
