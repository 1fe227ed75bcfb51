// Shapes: S new tokens, V visual tokens among them, D hidden size, G KV heads, K head size, C capacity.
//
// A session is one stream: requests of several threads take turns, step by step.

#include "session/trt_session.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "error.hpp"
#include "session/trt_cache.hpp"

namespace nvlm {

namespace {

constexpr std::size_t prefill_profile = 0;
constexpr std::size_t decode_profile = 1;
// In `visual_rows`: a token of text.
constexpr std::int64_t text_row = -1;

[[noreturn]] void refuse(const Plan& plan, const std::string& what) {
    throw Error(Status::failure, plan.path() + " is no " + what + " plan", "build the bundle again");
}

class PlanVisionSession : public VisionSession {
  public:
    PlanVisionSession(std::shared_ptr<Device> device, std::unique_ptr<Plan> plan)
        : device_(std::move(device)), plan_(std::move(plan)), context_(open(*plan_)) {
        tile_ = plan_->largest("tiles");
        token_ = plan_->shape("visual_tokens");
        most_ = static_cast<std::size_t>(tile_[0]);
        token_[0] = tile_[0];
        tiles_ = std::make_unique<DeviceBuffer>(device_, numbers_in(tile_));
        tokens_ = std::make_unique<DeviceBuffer>(device_, numbers_in(token_) * sizeof(float));
    }

    const GraphFacts& facts() const override { return facts_; }
    std::size_t tile_bytes() const override { return numbers_in(tile_) / most_; }
    std::size_t floats_per_tile() const override { return numbers_in(token_) / most_; }

    // As many tiles at once as the plan takes.
    void encode(const std::uint8_t* tiles, std::size_t count, float* tokens,
                Cancellation& cancellation) const override {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (std::size_t start = 0; start < count; start += most_) {
            cancellation.throw_if_requested();
            const std::size_t some = std::min(most_, count - start);
            PlanShape shape = tile_;
            shape[0] = static_cast<std::int64_t>(some);
            context_->bind("tiles", tiles_->address(), shape);
            context_->bind("visual_tokens", tokens_->address());
            device_->upload(tiles_->address(), tiles + start * tile_bytes(), some * tile_bytes());
            context_->run();
            device_->download(tokens + start * floats_per_tile(), tokens_->address(),
                              some * floats_per_tile() * sizeof(float));
            device_->wait();
        }
    }

  private:
    static std::unique_ptr<PlanContext> open(Plan& plan) {
        if (!plan.has("tiles") || !plan.has("visual_tokens") || plan.shape("tiles").size() != 4 ||
            plan.shape("visual_tokens").size() != 3) {
            refuse(plan, "vision");
        }
        return plan.new_context(prefill_profile);
    }

    const GraphFacts facts_;
    std::shared_ptr<Device> device_;
    std::unique_ptr<Plan> plan_;
    std::unique_ptr<PlanContext> context_;
    PlanShape tile_;
    PlanShape token_;
    std::size_t most_ = 0;
    std::unique_ptr<DeviceBuffer> tiles_;
    std::unique_ptr<DeviceBuffer> tokens_;
    mutable std::mutex mutex_;
};

// A cache, and the logits behind its last token.
class PlanPrompt : public PlanKvCache {
  public:
    PlanPrompt(const std::shared_ptr<Device>& device, const CacheShape& shape, std::size_t vocab_size)
        : PlanKvCache(device, shape), logits(vocab_size) {}

    std::vector<float> logits;
};

// Prompts go through the first profile in pieces, single tokens through the second, if there is one, as a
// captured graph. Keys and values stay on the device: the plan writes them in place, or gives the new ones,
// which are copied behind the others.
class PlanDecoderSession : public DecoderSession {
  public:
    PlanDecoderSession(std::shared_ptr<Device> device, std::unique_ptr<Plan> plan)
        : device_(std::move(device)), plan_(std::move(plan)) {
        if (!plan_->has("past_key.0") || !plan_->has("logits") || !plan_->has("visual_tokens") ||
            plan_->largest("past_key.0").size() != 4 || plan_->shape("logits").size() != 3) {
            refuse(*plan_, "decoder");
        }
        in_place_ = plan_->has("present_key.0");
        fixed_ = plan_->shape("past_key.0")[2] > 0;
        hidden_size_ = static_cast<std::size_t>(plan_->shape("visual_tokens")[1]);
        vocab_size_ = static_cast<std::size_t>(plan_->shape("logits")[2]);
        piece_ = static_cast<std::size_t>(plan_->largest("input_ids")[1]);
        read_cache_shape();
        const std::size_t last = plan_->profiles() - 1;
        prefill_ = plan_->new_context(std::min(prefill_profile, last));
        decode_ = plan_->new_context(std::min(decode_profile, last));
        allocate();
    }

    const GraphFacts& facts() const override { return facts_; }
    std::size_t hidden_size() const override { return hidden_size_; }
    std::size_t vocab_size() const override { return vocab_size_; }

    // A plan that writes in place has caches of its whole context alone, and others at least a piece.
    std::unique_ptr<KvCache> new_cache(std::size_t capacity) const override {
        if (capacity > cache_.capacity) {
            throw Error(Status::failure, std::to_string(capacity) + " tokens do not fit into a context of " +
                                             std::to_string(cache_.capacity));
        }
        CacheShape shape = cache_;
        if (!fixed_) shape.capacity = std::min(std::max(capacity, piece_), cache_.capacity);
        const std::lock_guard<std::mutex> lock(mutex_);
        return std::make_unique<PlanPrompt>(device_, shape, vocab_size_);
    }

    const float* run(const DecoderStep& step, KvCache& cache, Cancellation& cancellation) const override {
        auto& mine = static_cast<PlanPrompt&>(cache);
        if (step.count < 1 || mine.length() + step.count > mine.capacity()) {
            throw Error(Status::failure, std::to_string(mine.length() + step.count) +
                                             " tokens do not fit into a cache of " +
                                             std::to_string(mine.capacity()));
        }
        std::size_t seen = 0;
        for (std::size_t start = 0; start < step.count; start += piece_) {
            cancellation.throw_if_requested();
            const std::size_t count = std::min(piece_, step.count - start);
            const std::lock_guard<std::mutex> lock(mutex_);
            seen += run_piece(step, start, count, seen, mine);
        }
        return mine.logits.data();
    }

  private:
    void read_cache_shape() {
        const PlanShape past = plan_->largest("past_key.0");
        while (plan_->has("past_key." + std::to_string(cache_.layers))) ++cache_.layers;
        cache_.kv_heads = static_cast<std::size_t>(past[1]);
        cache_.capacity = static_cast<std::size_t>(past[2]);
        cache_.head_size = static_cast<std::size_t>(past[3]);
        cache_.item_bytes = plan_->item_bytes("past_key.0");
    }

    // Memory for the largest inputs; every step uses the beginning of it.
    void allocate() {
        for (const std::string& name : plan_->names()) {
            if (!plan_->is_input(name) || name.rfind("past_key.", 0) == 0 ||
                name.rfind("past_value.", 0) == 0) {
                continue;
            }
            add_buffer(name, numbers_in(plan_->largest(name)) * plan_->item_bytes(name));
        }
        add_buffer("logits", vocab_size_ * sizeof(float));
        if (!in_place_) add_buffer("new", cache_.tensors() * cache_.bytes_of(piece_));
    }

    void add_buffer(const std::string& name, std::size_t bytes) {
        buffers_[name] = std::make_unique<DeviceBuffer>(device_, bytes);
    }

    // Returns how many visual tokens it took, from the `seen`th on.
    std::size_t run_piece(const DecoderStep& step, std::size_t start, std::size_t count, std::size_t seen,
                          PlanPrompt& prompt) const {
        const auto end = static_cast<std::int64_t>(start + count);
        std::vector<std::int64_t> rows(count, text_row);
        std::size_t visual = 0;
        while (seen + visual < step.visual_count && step.visual_positions[seen + visual] < end) {
            const auto place = static_cast<std::size_t>(step.visual_positions[seen + visual]) - start;
            rows[place] = static_cast<std::int64_t>(visual++);
        }
        const bool decodes = count == 1 && visual == 0;
        PlanContext& context = decodes ? *decode_ : *prefill_;
        bind_cache(context, prompt, count);
        upload_step(context, step, start, seen, visual, rows, static_cast<std::int32_t>(prompt.length()));
        context.bind("logits", buffers_.at("logits")->address());
        if (decodes) {
            context.run_captured();
        } else {
            context.run();
        }
        if (!in_place_) prompt.append(*device_, buffers_.at("new")->address(), count);
        if (start + count == step.count) {
            device_->download(prompt.logits.data(), buffers_.at("logits")->address(),
                              vocab_size_ * sizeof(float));
        }
        device_->wait();
        prompt.grow(count);
        return visual;
    }

    void upload_step(PlanContext& context, const DecoderStep& step, std::size_t start, std::size_t seen,
                     std::size_t visual, const std::vector<std::int64_t>& rows, std::int32_t past) const {
        const auto count = static_cast<std::int64_t>(rows.size());
        const auto fresh = static_cast<std::int32_t>(count);
        const std::int64_t last = count - 1;
        put(context, "input_ids", step.ids + start, {1, count});
        put(context, "visual_rows", rows.data(), {1, count});
        // No tensor is empty: a visual token that no position takes.
        const std::vector<float> none(visual == 0 ? hidden_size_ : 0);
        const float* tokens = visual == 0 ? none.data() : step.visual_tokens + seen * hidden_size_;
        put(context, "visual_tokens", tokens,
            {std::max(static_cast<std::int64_t>(visual), std::int64_t{1}),
             static_cast<std::int64_t>(hidden_size_)});
        put(context, "past_lengths", &past, {1});
        put(context, "new_lengths", &fresh, {1});
        put(context, "logit_positions", &last, {1, 1});
    }

    template <class Number>
    void put(PlanContext& context, const std::string& name, const Number* from,
             const PlanShape& shape) const {
        void* const address = buffers_.at(name)->address();
        device_->upload(address, from, numbers_in(shape) * sizeof(Number));
        context.bind(name, address, shape);
    }

    void bind_cache(PlanContext& context, const PlanPrompt& prompt, std::size_t count) const {
        for (std::size_t i = 0; i < cache_.tensors(); ++i) {
            const std::string name = PlanKvCache::tensor_name(i);
            context.bind("past_" + name, prompt.tensor_address(i), prompt.tensor_shape());
            if (in_place_) {
                context.bind("present_" + name, prompt.tensor_address(i));
            } else {
                auto* const staged = static_cast<char*>(buffers_.at("new")->address());
                context.bind("new_" + name, staged + i * cache_.bytes_of(count));
            }
        }
    }

    const GraphFacts facts_;
    std::shared_ptr<Device> device_;
    std::unique_ptr<Plan> plan_;
    std::unique_ptr<PlanContext> prefill_;
    std::unique_ptr<PlanContext> decode_;
    std::map<std::string, std::unique_ptr<DeviceBuffer>> buffers_;
    CacheShape cache_;
    bool in_place_ = false;
    bool fixed_ = false;
    std::size_t hidden_size_ = 0;
    std::size_t vocab_size_ = 0;
    std::size_t piece_ = 0;
    mutable std::mutex mutex_;
};

}  // namespace

std::unique_ptr<VisionSession> make_plan_vision(std::shared_ptr<Device> device, std::unique_ptr<Plan> plan) {
    return std::make_unique<PlanVisionSession>(std::move(device), std::move(plan));
}

std::unique_ptr<DecoderSession> make_plan_decoder(std::shared_ptr<Device> device,
                                                  std::unique_ptr<Plan> plan) {
    return std::make_unique<PlanDecoderSession>(std::move(device), std::move(plan));
}

}  // namespace nvlm
