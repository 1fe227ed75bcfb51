#include "session/trt_open.hpp"

#include "session/trt_runtime.hpp"
#include "session/trt_session.hpp"

namespace nvlm {

Sessions open_trt_sessions(const Bundle& bundle) {
    refuse_cross_attention(bundle);
    // A stream each, so that one prompt's images are encoded while another is answered.
    const std::shared_ptr<CudaDevice> vision = CudaDevice::open(), decoder = CudaDevice::open();
    GpuMachine machine = cuda_machine();
    machine.versions["tensorrt"] = tensorrt_version();
    check_machine(bundle.manifest, machine);
    Sessions sessions;
    sessions.vision = make_plan_vision(vision, open_trt_plan(bundle.manifest.model_path("vision"), vision));
    sessions.decoder = make_plan_decoder(decoder, open_trt_plan(bundle.manifest.model_path("llm"), decoder));
    return sessions;
}

}  // namespace nvlm
