#include "session/trt_plan.hpp"

#include <algorithm>

namespace nvlm {

std::size_t numbers_in(const PlanShape& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    return count;
}

void PlanContext::bind(const std::string& name, void* address, const PlanShape& shape) {
    const auto found = bound_.find(name);
    if (found != bound_.end() && found->second.address == address && found->second.shape == shape) return;
    if (!shape.empty()) set_shape(name, shape);
    set_address(name, address);
    bound_[name] = {address, shape};
    // What was captured computes with the old shapes and addresses.
    captured_ = Captured::no;
}

void PlanContext::run_captured() {
    if (captured_ == Captured::no) {
        start();
        captured_ = Captured::warm;
        return;
    }
    if (captured_ == Captured::warm) {
        capture();
        captured_ = Captured::yes;
    }
    launch();
}

bool Plan::has(const std::string& name) const {
    return std::find(names().begin(), names().end(), name) != names().end();
}

}  // namespace nvlm
