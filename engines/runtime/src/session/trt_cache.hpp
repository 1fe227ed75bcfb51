// Keys and values of one prompt in a device's memory.

#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "session/session.hpp"
#include "session/trt_device.hpp"
#include "session/trt_plan.hpp"

namespace nvlm {

// `item_bytes`: of one number.
struct CacheShape {
    std::size_t layers = 0;
    std::size_t kv_heads = 0;
    std::size_t capacity = 0;
    std::size_t head_size = 0;
    std::size_t item_bytes = 0;

    // Bytes of so many tokens in one of the tensors.
    std::size_t bytes_of(std::size_t tokens) const { return kv_heads * tokens * head_size * item_bytes; }
    std::size_t tensors() const { return 2 * layers; }
};

// All layers' keys and values in one piece of memory, [2 L, 1, G, C, K]: key, value, key of the next layer.
class PlanKvCache : public KvCache {
  public:
    PlanKvCache(const std::shared_ptr<Device>& device, const CacheShape& shape);

    std::size_t length() const override { return length_; }
    std::size_t capacity() const override { return shape_.capacity; }

    // [1, G, C, K] of one layer's keys or values.
    PlanShape tensor_shape() const;
    // `key.0`, `value.0`, `key.1` ...
    static std::string tensor_name(std::size_t index);
    void* tensor_address(std::size_t index) const;
    // Write new keys and values behind the others; `length` stays as it is. `from`: [2 L, 1, G, S, K] with
    // S = `tokens`.
    void append(Device& device, const void* from, std::size_t tokens);
    void grow(std::size_t tokens) { length_ += tokens; }

  private:
    CacheShape shape_;
    DeviceBuffer memory_;
    std::size_t length_ = 0;
};

}  // namespace nvlm
