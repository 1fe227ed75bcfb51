#include "error.hpp"
#include "session/session.hpp"

#if defined(NVLM_HAS_ONNXRUNTIME)
#include "session/ort_session.hpp"
#endif

namespace nvlm {

Sessions open_sessions(const Bundle& bundle, const SessionOptions& options) {
    const std::string& backend = bundle.manifest.backend();
    if (bundle.config.variant != 'D') {
        throw Error(Status::unsuitable,
                    bundle.directory + " is an NVLM-" + bundle.config.variant +
                        ", and the native runtime has no cross-attention: it runs NVLM-D",
                    "open it in Python: nvlm_deploy.Engine.open");
    }
#if defined(NVLM_HAS_ONNXRUNTIME)
    if (backend == "onnxruntime") {
        Sessions sessions = open_ort_sessions(bundle, options);
        bundle.check_graph("vision", sessions.vision->facts());
        bundle.check_graph("llm", sessions.decoder->facts());
        return sessions;
    }
#else
    (void)options;
#endif
    throw Error(
        Status::unsuitable,
        bundle.manifest.path() + ": backend is " + backend + ", and this libnvlm was built without it",
        "build it with the backend's headers (see docs/embedding.md), or build an engine for another "
        "target");
}

}  // namespace nvlm
