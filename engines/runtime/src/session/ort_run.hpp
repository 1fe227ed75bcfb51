// Runs of graphs that a request's cancellation ends.

#pragma once

#include "session/ort_graph.hpp"

namespace nvlm {

inline std::int64_t as_dimension(std::size_t size) {
    return static_cast<std::int64_t>(size);
}

// A call that ends early when its request is cancelled. Throws Error: cancelled, or the failure.
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

}  // namespace nvlm
