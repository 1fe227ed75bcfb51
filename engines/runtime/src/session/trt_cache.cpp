#include "session/trt_cache.hpp"

namespace nvlm {

PlanKvCache::PlanKvCache(const std::shared_ptr<Device>& device, const CacheShape& shape)
    : shape_(shape), memory_(device, shape.tensors() * shape.bytes_of(shape.capacity)) {}

PlanShape PlanKvCache::tensor_shape() const {
    return {1, static_cast<std::int64_t>(shape_.kv_heads), static_cast<std::int64_t>(shape_.capacity),
            static_cast<std::int64_t>(shape_.head_size)};
}

std::string PlanKvCache::tensor_name(std::size_t index) {
    return (index % 2 == 0 ? "key." : "value.") + std::to_string(index / 2);
}

void* PlanKvCache::tensor_address(std::size_t index) const {
    return static_cast<char*>(memory_.address()) + index * shape_.bytes_of(shape_.capacity);
}

// The tensors lie one behind the other in both, and so do their heads: all are rows of one copy.
void PlanKvCache::append(Device& device, const void* from, std::size_t tokens) {
    const std::size_t token = shape_.head_size * shape_.item_bytes;
    device.copy_rows(static_cast<char*>(memory_.address()) + length_ * token, shape_.capacity * token, from,
                     tokens * token, tokens * token, shape_.tensors() * shape_.kv_heads);
}

}  // namespace nvlm
