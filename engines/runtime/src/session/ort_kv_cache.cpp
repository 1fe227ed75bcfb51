#include "session/ort_kv_cache.hpp"

#include <new>

#include "error.hpp"
#include "session/ort_run.hpp"

namespace nvlm {

namespace {

constexpr auto float32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto int64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto int32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;

static_assert(sizeof(TileRange) == 2 * sizeof(std::int64_t), "ranges are handed over as pairs of numbers");

bool is_tile_input(const std::string& name) {
    return name.rfind("tile_key.", 0) == 0 || name.rfind("tile_value.", 0) == 0;
}

const std::vector<float>& array_of(const TileStates& tiles, const std::string& name) {
    for (const TileStates::Array& array : tiles.arrays) {
        if (array.name == name) return array.numbers;
    }
    throw Error(Status::failure, "the graph of tiles makes no " + name, "build the bundle again");
}

}  // namespace

OrtKvCache::OrtKvCache(const OrtGraph& graph, std::size_t layers, std::size_t vocab_size,
                       std::size_t capacity)
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
    for (const OrtPort& port : graph.inputs()) {
        has_cross_attention_ = has_cross_attention_ || is_tile_input(port.name);
    }
}

void OrtKvCache::run(const DecoderStep& step, std::size_t hidden_size, bool wanted,
                     Cancellation& cancellation) {
    bind_step(step, hidden_size, wanted);
    run_cancellable(graph_, run_options_.get(), cancellation, [&] {
        return graph_.library().api().RunWithBinding(graph_.session(), run_options_.get(), binding_.get());
    });
    past_[0] += new_[0];
}

void OrtKvCache::bind_cache(const std::string& name) {
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

// Null: text without images, which attends to no entries.
void OrtKvCache::bind_tiles(const TileStates* tiles) {
    static const std::vector<float> none;
    const std::size_t entries = tiles == nullptr ? 0 : tiles->tiles.size();
    // The library reads inputs only; its type for tensors has no const.
    auto* numbers = tiles == nullptr ? nullptr : const_cast<std::int64_t*>(tiles->tiles.data());
    const std::int64_t length = as_dimension(entries);
    values_.push_back(graph_.tensor(numbers, entries * sizeof(std::int64_t), {1, length}, int64));
    bind_input("tiles", values_.back().get());
    for (const OrtPort& port : graph_.inputs()) {
        if (!is_tile_input(port.name)) continue;
        const std::vector<float>& array = tiles == nullptr ? none : array_of(*tiles, port.name);
        values_.push_back(graph_.tensor(const_cast<float*>(array.data()), array.size() * sizeof(float),
                                        {1, port.shape[1], length, port.shape[3]}, float32));
        bind_input(port.name, values_.back().get());
    }
}

void OrtKvCache::bind_input(const std::string& name, const OrtValue* value) {
    graph_.library().check(graph_.library().api().BindInput(binding_.get(), name.c_str(), value),
                           "ONNX Runtime failed");
}

void OrtKvCache::bind_output(const std::string& name, const OrtValue* value) {
    graph_.library().check(graph_.library().api().BindOutput(binding_.get(), name.c_str(), value),
                           "ONNX Runtime failed");
}

// Steps of one token have their memory here, so that the second and later ones are bound already.
void OrtKvCache::bind_step(const DecoderStep& step, std::size_t hidden_size, bool wanted) {
    const bool single = step.count == 1 && step.visual_count == 0 && wanted;
    new_[0] = static_cast<std::int32_t>(step.count);
    position_[0] = as_dimension(step.count) - 1;
    if (single) {
        id_[0] = step.ids[0];
        single_visible_ = step.tiles == nullptr ? TileRange(0, 0) : step.visible[0];
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
    if (has_cross_attention_) bind_visible(step, single);
    step_values_.push_back(graph_.tensor(logits_.data(), wanted ? logits_.size() * sizeof(float) : 0,
                                         {1, places, as_dimension(logits_.size())}, float32));
    bind_output("logits", step_values_.back().get());
}

void OrtKvCache::bind_visible(const DecoderStep& step, bool single) {
    if (!tiles_bound_) bind_tiles(step.tiles);
    tiles_bound_ = true;
    if (step.tiles == nullptr) nothing_visible_.assign(step.count, {0, 0});
    TileRange* const ranges = single                  ? &single_visible_
                              : step.tiles == nullptr ? nothing_visible_.data()
                                                      : const_cast<TileRange*>(step.visible);
    add("visible_tiles", ranges, step.count * sizeof(TileRange), {1, as_dimension(step.count), 2}, int64);
}

void OrtKvCache::add(const char* name, void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                     ONNXTensorElementDataType type) {
    step_values_.push_back(graph_.tensor(data, bytes, shape, type));
    bind_input(name, step_values_.back().get());
}

}  // namespace nvlm
