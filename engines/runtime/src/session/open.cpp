#include "error.hpp"
#include "session/session.hpp"

#if defined(NVLM_HAS_ONNXRUNTIME)
#include "session/ort_session.hpp"
#endif
#if defined(NVLM_HAS_TENSORRT)
#include "session/trt_open.hpp"
#endif
#if defined(NVLM_HAS_TENSORRT_LLM)
#include "session/trtllm_open.hpp"
#endif
#include "session/trt_machine.hpp"

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

}  // namespace nvlm
