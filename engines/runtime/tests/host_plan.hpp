// A device of host memory, and a plan with the inputs and outputs of a decoder that computes sums in it: a
// token's keys are small whole numbers made of its id or its visual token, and logits are sums over all keys
// and values of the cache weighted by their positions, so that a token at a wrong place changes them.

#pragma once

#include <cstring>
#include <map>
#include <stdexcept>

#include "session/trt_device.hpp"
#include "session/trt_plan.hpp"

// Hidden size, vocabulary, layers, KV heads, head size.
constexpr std::int64_t host_hidden = 4, host_vocab = 5, host_layers = 2, host_heads = 2, host_head = 2;

struct HostSizes {
    std::int64_t context;
    std::int64_t piece;
    bool in_place;
};

class HostDevice : public nvlm::Device {
  public:
    void* allocate(std::size_t bytes) override {
        auto memory = std::make_unique<char[]>(bytes);
        char* const address = memory.get();
        memory_[address] = {std::move(memory), bytes};
        return address;
    }
    void free(void* address) noexcept override { memory_.erase(static_cast<char*>(address)); }
    void upload(void* address, const void* from, std::size_t bytes) override {
        std::memcpy(view<char>(address, bytes), from, bytes);
    }
    void download(void* to, const void* address, std::size_t bytes) override {
        std::memcpy(to, view<char>(const_cast<void*>(address), bytes), bytes);
    }
    void copy_rows(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                   std::size_t width, std::size_t rows) override {
        for (std::size_t row = 0; row < rows; ++row) {
            const auto* from = static_cast<const char*>(source) + row * source_pitch;
            download(view<char>(static_cast<char*>(target) + row * target_pitch, width), from, width);
        }
    }
    void wait() override {}

    // Numbers at an address, all of them within one piece of memory.
    template <class Number>
    Number* view(void* address, std::size_t count) const {
        auto* const start = static_cast<char*>(address);
        auto found = memory_.upper_bound(start);
        if (found == memory_.begin()) throw std::logic_error("an address outside of all memory");
        --found;
        if (start + count * sizeof(Number) > found->first + found->second.bytes) {
            throw std::logic_error("a session reads or writes outside of its memory");
        }
        return static_cast<Number*>(address);
    }

    int captured = 0;

  private:
    struct Memory {
        std::unique_ptr<char[]> bytes_of;
        std::size_t bytes;
    };
    std::map<char*, Memory> memory_;
};

class HostContext : public nvlm::PlanContext {
  public:
    HostContext(std::shared_ptr<HostDevice> device, HostSizes sizes)
        : device_(std::move(device)), sizes_(sizes) {}

  protected:
    void set_shape(const std::string& name, const nvlm::PlanShape& shape) override { shapes_[name] = shape; }
    void set_address(const std::string& name, void* address) override { addresses_[name] = address; }
    void capture() override { ++device_->captured; }
    void launch() override { start(); }
    void start() override {
        const std::int64_t count = shapes_.at("input_ids").at(1), past = *get<std::int32_t>("past_lengths");
        if (count > sizes_.piece) throw std::logic_error("a piece beyond the profile");
        const std::int64_t wanted = *get<std::int64_t>("logit_positions");
        std::int64_t sum = 0;
        for (std::int64_t tensor = 0; tensor < 2 * host_layers; ++tensor) {
            sum += run_tensor(tensor, count, past, wanted);
        }
        auto* const logits = device_->view<float>(addresses_.at("logits"), host_vocab);
        for (std::int64_t i = 0; i < host_vocab; ++i) logits[i] = static_cast<float>(sum * (i + 1));
    }

  private:
    template <class Number>
    Number* get(const std::string& name) {
        return device_->view<Number>(addresses_.at(name), nvlm::numbers_in(shapes_.at(name)));
    }

    // Write the new keys or values of a layer, and return the sum over all up to the wanted position.
    std::int64_t run_tensor(std::int64_t tensor, std::int64_t count, std::int64_t past, std::int64_t wanted) {
        const std::string name = (tensor % 2 == 0 ? "key." : "value.") + std::to_string(tensor / 2);
        const std::int64_t capacity = shapes_.at("past_" + name).at(2);
        float* const cache = get<float>("past_" + name);
        void* const out = addresses_.at((sizes_.in_place ? "present_" : "new_") + name);
        if (sizes_.in_place && out != cache) throw std::logic_error("a cache in place is one memory");
        const std::int64_t rows = sizes_.in_place ? capacity : count;
        auto* const fresh =
            device_->view<float>(out, static_cast<std::size_t>(host_heads * rows * host_head));
        std::int64_t sum = 0;
        for (std::int64_t i = 0; i < host_heads * host_head; ++i) {
            const std::int64_t head = i / host_head, column = i % host_head;
            for (std::int64_t at = 0; at <= past + wanted; ++at) {
                if (at < past) {
                    sum += (at + 1) *
                           static_cast<std::int64_t>(cache[(head * capacity + at) * host_head + column]);
                }
            }
            for (std::int64_t token = 0; token < count; ++token) {
                const float made = static_cast<float>(embedding(token, i) * (tensor + 1));
                const std::int64_t row = sizes_.in_place ? past + token : token;
                fresh[(head * rows + row) * host_head + column] = made;
                if (token <= wanted) sum += (past + token + 1) * static_cast<std::int64_t>(made);
            }
        }
        return sum;
    }

    std::int64_t embedding(std::int64_t token, std::int64_t column) {
        const std::int64_t row = get<std::int64_t>("visual_rows")[token];
        if (row < 0) return get<std::int64_t>("input_ids")[token] * (column + 2);
        return static_cast<std::int64_t>(get<float>("visual_tokens")[row * host_hidden + column]);
    }

    std::shared_ptr<HostDevice> device_;
    HostSizes sizes_;
    std::map<std::string, nvlm::PlanShape> shapes_;
    std::map<std::string, void*> addresses_;
};

class HostPlan : public nvlm::Plan {
  public:
    HostPlan(std::shared_ptr<HostDevice> device, HostSizes sizes)
        : device_(std::move(device)), sizes_(sizes) {
        const std::int64_t piece = sizes.piece, cache = sizes.in_place ? sizes.context : -1;
        tensors_ = {{"input_ids", {{1, piece}, 8}},
                    {"visual_rows", {{1, piece}, 8}},
                    {"visual_tokens", {{-1, host_hidden}, 4}},
                    {"past_lengths", {{1}, 4}},
                    {"new_lengths", {{1}, 4}},
                    {"logit_positions", {{1, 1}, 8}},
                    {"logits", {{1, -1, host_vocab}, 4}}};
        for (std::int64_t layer = 0; layer < host_layers; ++layer) {
            for (const char* kind : {"key.", "value."}) {
                const std::string name = kind + std::to_string(layer);
                tensors_["past_" + name] = {{1, host_heads, cache, host_head}, 4};
                tensors_[(sizes.in_place ? "present_" : "new_") + name] = {{1, host_heads, -1, host_head}, 4};
            }
        }
        for (const auto& [name, tensor] : tensors_) names_.push_back(name);
    }

    const std::string& path() const override { return path_; }
    const std::vector<std::string>& names() const override { return names_; }
    bool is_input(const std::string& name) const override {
        return name != "logits" && name.rfind("present_", 0) != 0 && name.rfind("new_key", 0) != 0 &&
               name.rfind("new_value", 0) != 0;
    }
    nvlm::PlanShape shape(const std::string& name) const override { return tensors_.at(name).shape; }
    nvlm::PlanShape largest(const std::string& name) const override {
        nvlm::PlanShape shape = tensors_.at(name).shape;
        for (std::int64_t& size : shape) {
            if (size < 0) size = name == "visual_tokens" ? sizes_.piece : sizes_.context;
        }
        return shape;
    }
    std::size_t item_bytes(const std::string& name) const override { return tensors_.at(name).item_bytes; }
    std::size_t profiles() const override { return 1; }
    std::unique_ptr<nvlm::PlanContext> new_context(std::size_t) override {
        return std::make_unique<HostContext>(device_, sizes_);
    }

  private:
    struct Tensor {
        nvlm::PlanShape shape;
        std::size_t item_bytes;
    };

    std::shared_ptr<HostDevice> device_;
    HostSizes sizes_;
    std::string path_ = "host.plan";
    std::map<std::string, Tensor> tensors_;
    std::vector<std::string> names_;
};
