// Shapes: C tiles of an image in cross-attention, N visual tokens of each, D hidden size, G KV heads, L
// entries, K head size.

#include "session/ort_encoders.hpp"

#include <utility>

#include "error.hpp"
#include "session/ort_run.hpp"

namespace nvlm {

namespace {

class OrtVisionSession final : public VisionSession {
  public:
    OrtVisionSession(const OrtLibrary& library, const std::string& path, const SessionOptions& options)
        : graph_(library, path, options), tile_(graph_.input("tiles")) {
        if (tile_.shape.size() != 4 || graph_.outputs().size() != 1 ||
            graph_.outputs()[0].shape.size() != 3) {
            throw Error(Status::failure, path + " is no vision graph", "build the bundle again");
        }
        tile_.shape[0] = 1;
        tile_bytes_ = elements(tile_, 1);
        token_ = graph_.outputs()[0];
        token_.shape[0] = 1;
        floats_per_tile_ = elements(token_, 1);
    }

    const GraphFacts& facts() const override { return graph_.facts(); }
    std::size_t tile_bytes() const override { return tile_bytes_; }
    std::size_t floats_per_tile() const override { return floats_per_tile_; }

    // One tile after the other: several at once are no faster on a CPU.
    void encode(const std::uint8_t* tiles, std::size_t count, float* tokens,
                Cancellation& cancellation) const override {
        const OrtPtr<OrtRunOptions> run_options = graph_.new_run_options();
        for (std::size_t i = 0; i < count; ++i) {
            // The library reads inputs only; its type for tensors has no const.
            auto* pixels = const_cast<std::uint8_t*>(tiles + i * tile_bytes_);
            const OrtPtr<OrtValue> in = graph_.tensor(pixels, tile_bytes_, tile_.shape, tile_.type);
            const OrtPtr<OrtValue> out =
                graph_.tensor(tokens + i * floats_per_tile_, floats_per_tile_ * sizeof(float), token_.shape,
                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
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
    std::size_t tile_bytes_ = 0;
    std::size_t floats_per_tile_ = 0;
};

class OrtTileSession final : public TileSession {
  public:
    OrtTileSession(const OrtLibrary& library, const Bundle& bundle, const SessionOptions& options)
        : graph_(library, bundle.manifest.model_path("llm.tiles"), options) {
        bundle.check_graph("llm.tiles", graph_.facts());
        const std::string path = bundle.manifest.model_path("llm.tiles");
        token_ = graph_.input("visual_tokens");
        floats_per_tile_ = elements(token_, 1);
        if (token_.shape.size() != 3 || token_.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
            throw Error(Status::failure, path + " is no graph of tiles", "build the bundle again");
        }
        for (const OrtPort& port : graph_.outputs()) {
            const bool is_index = port.name == "tiles";
            const auto type =
                is_index ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
            if (port.type != type || port.shape.size() != (is_index ? 1U : 3U)) {
                throw Error(Status::failure, path + ": " + port.name + " is nothing that tiles have",
                            "build the bundle again");
            }
            if (!is_index) kv_heads_ = elements({port.name, port.type, {port.shape[0]}}, 0);
            names_.push_back(port.name.c_str());
        }
    }

    const GraphFacts& facts() const override { return graph_.facts(); }
    std::size_t floats_per_tile() const override { return floats_per_tile_; }

    TileStates states(const float* tokens, std::size_t count, Cancellation& cancellation) const override {
        const std::vector<std::int64_t> shape = {as_dimension(count), token_.shape[1], token_.shape[2]};
        const std::size_t bytes = count * floats_per_tile_ * sizeof(float);
        // The library reads inputs only; its type for tensors has no const.
        const OrtPtr<OrtValue> in =
            graph_.tensor(const_cast<float*>(tokens), bytes, shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        const OrtPtr<OrtRunOptions> run_options = graph_.new_run_options();
        const char* in_name = token_.name.c_str();
        const OrtValue* in_value = in.get();
        std::vector<OrtValue*> made(names_.size(), nullptr);
        run_cancellable(graph_, run_options.get(), cancellation, [&] {
            return graph_.library().api().Run(graph_.session(), run_options.get(), &in_name, &in_value, 1,
                                              names_.data(), names_.size(), made.data());
        });
        std::vector<OrtPtr<OrtValue>> values;
        values.reserve(made.size());
        for (OrtValue* value : made) values.emplace_back(value, graph_.library().api().ReleaseValue);
        return take(std::move(values));
    }

  private:
    TileStates take(std::vector<OrtPtr<OrtValue>> values) const {
        TileStates states;
        states.kv_heads = kv_heads_;
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::string name = names_[i];
            if (name == "tiles") {
                states.tiles = numbers_of<std::int64_t>(*values[i]);
            } else {
                states.arrays.push_back({name, numbers_of<float>(*values[i])});
            }
            // One by one, so that no more than one array is in memory twice.
            values[i].reset();
        }
        return states;
    }

    template <class Number>
    std::vector<Number> numbers_of(OrtValue& value) const {
        const OrtApi& api = graph_.library().api();
        OrtTensorTypeAndShapeInfo* made = nullptr;
        graph_.library().check(api.GetTensorTypeAndShape(&value, &made), "ONNX Runtime failed");
        const OrtPtr<OrtTensorTypeAndShapeInfo> info(made, api.ReleaseTensorTypeAndShapeInfo);
        std::size_t count = 0;
        graph_.library().check(api.GetTensorShapeElementCount(info.get(), &count), "ONNX Runtime failed");
        void* data = nullptr;
        graph_.library().check(api.GetTensorMutableData(&value, &data), "ONNX Runtime failed");
        const auto* first = static_cast<const Number*>(data);
        return {first, first + count};
    }

    OrtGraph graph_;
    OrtPort token_;
    std::size_t floats_per_tile_ = 0;
    std::size_t kv_heads_ = 0;
    std::vector<const char*> names_;
};

}  // namespace

std::unique_ptr<VisionSession> open_ort_vision(const OrtLibrary& library, const std::string& path,
                                               const SessionOptions& options) {
    return std::make_unique<OrtVisionSession>(library, path, options);
}

std::unique_ptr<TileSession> open_ort_tiles(const OrtLibrary& library, const Bundle& bundle,
                                            const SessionOptions& options) {
    return std::make_unique<OrtTileSession>(library, bundle, options);
}

}  // namespace nvlm
