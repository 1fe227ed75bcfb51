#include <algorithm>

#include "error.hpp"
#include "session/session.hpp"
#include "session/trt_machine.hpp"

#if defined(NVLM_HAS_ONNXRUNTIME)
#include "session/ort_session.hpp"
#endif
#if defined(NVLM_HAS_TENSORRT)
#include "session/trt_open.hpp"
#endif
#if defined(NVLM_HAS_TENSORRT_LLM)
#include "session/trtllm_open.hpp"
#endif

namespace nvlm {

std::int64_t TileStates::tile_count() const noexcept {
    return tiles.empty() ? 0 : *std::max_element(tiles.begin(), tiles.end()) + 1;
}

std::size_t TileStates::bytes() const noexcept {
    std::size_t sum = tiles.size() * sizeof(std::int64_t);
    for (const Array& array : arrays) sum += array.numbers.size() * sizeof(float);
    return sum;
}

namespace {

// By these sizes memory is handed over: a graph with others would read what lies behind it.
void check_sizes(const Bundle& bundle, const Sessions& sessions) {
    const auto tile_size = static_cast<std::size_t>(bundle.config.tile_size);
    const auto hidden_size = static_cast<std::size_t>(bundle.config.hidden_size);
    const std::size_t floats = static_cast<std::size_t>(bundle.config.visual_tokens_per_tile) * hidden_size;
    if (sessions.vision->tile_bytes() != tile_size * tile_size * 3 ||
        sessions.vision->floats_per_tile() != floats ||
        (sessions.decoder && sessions.decoder->hidden_size() != hidden_size) ||
        (sessions.tiles && sessions.tiles->floats_per_tile() != floats)) {
        throw Error(Status::verification,
                    bundle.directory +
                        ": config.json gives other sizes of tiles and visual tokens than the "
                        "graphs have",
                    bundle.manifest.rebuild_hint());
    }
}

// Throws Error as open_sessions.
Sessions open_with_backend(const Bundle& bundle, [[maybe_unused]] const SessionOptions& options) {
    const std::string& backend = bundle.manifest.backend();
#if defined(NVLM_HAS_ONNXRUNTIME)
    if (backend == "onnxruntime") {
        Sessions sessions = open_ort_sessions(bundle, options);
        bundle.check_graph("vision", sessions.vision->facts());
        bundle.check_graph("llm", sessions.decoder->facts());
        return sessions;
    }
#endif
#if defined(NVLM_HAS_TENSORRT)
    if (backend == "tensorrt") return open_trt_sessions(bundle);
#endif
#if defined(NVLM_HAS_TENSORRT_LLM)
    if (backend == "tensorrt_llm") return open_trtllm_sessions(bundle);
#endif
    throw Error(
        Status::unsuitable,
        bundle.manifest.path() + ": backend is " + backend + ", and this libnvlm was built without it",
        build_hint(backend));
}

}  // namespace

Sessions open_sessions(const Bundle& bundle, const SessionOptions& options) {
    Sessions sessions = open_with_backend(bundle, options);
    check_sizes(bundle, sessions);
    return sessions;
}

}  // namespace nvlm
