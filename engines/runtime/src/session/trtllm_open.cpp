#include "session/trtllm_open.hpp"

#include "error.hpp"
#include "session/trt_runtime.hpp"
#include "session/trt_session.hpp"
#include "session/trtllm_executor.hpp"

namespace nvlm {

Sessions open_trtllm_sessions(const Bundle& bundle) {
    refuse_cross_attention(bundle);
    const Manifest& manifest = bundle.manifest;
    const TrtLlmFacts facts = TrtLlmFacts::of(manifest, bundle.config);
    if (facts.ranks != 1) {
        throw Error(Status::unsuitable,
                    manifest.path() + ": the engine has " + std::to_string(facts.ranks) +
                        " ranks, and the native runtime runs engines of one",
                    "run it in Python under mpirun, or compile it for one GPU");
    }
    const std::shared_ptr<CudaDevice> device = CudaDevice::open();
    GpuMachine machine = cuda_machine();
    machine.versions["tensorrt"] = tensorrt_version();
    machine.versions["tensorrt_llm"] = trtllm_version();
    check_machine(manifest, machine);
    Sessions sessions;
    // First, so that its memory is taken before keys and values get a share of the rest.
    sessions.vision = make_plan_vision(device, open_trt_plan(manifest.model_path("vision"), device));
    const std::string folder =
        bundle.directory + "/" + Fields(manifest.section("llm"), manifest.path(), "llm").text("engine");
    sessions.inflight = make_trtllm_session(open_trtllm_executor(folder, facts), facts);
    return sessions;
}

}  // namespace nvlm
