#include "base/cancellation.hpp"

#include <utility>

#include "error.hpp"

namespace nvlm {

void Cancellation::cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    requested_ = true;
    if (stop_) stop_();
}

void Cancellation::throw_if_requested() const {
    if (requested_) throw Error(Status::cancelled, "the request was cancelled");
}

Cancellation::Scope::Scope(Cancellation& cancellation, std::function<void()> stop)
    : cancellation_(cancellation) {
    const std::lock_guard<std::mutex> lock(cancellation_.mutex_);
    cancellation_.stop_ = std::move(stop);
    if (cancellation_.requested_) cancellation_.stop_();
}

Cancellation::Scope::~Scope() {
    const std::lock_guard<std::mutex> lock(cancellation_.mutex_);
    cancellation_.stop_ = nullptr;
}

}  // namespace nvlm
