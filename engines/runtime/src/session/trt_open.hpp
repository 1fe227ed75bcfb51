// Engines of plans that TensorRT runs on a GPU, NVLM-D alone.

#pragma once

#include "session/session.hpp"

namespace nvlm {

// Throws Error: unsuitable for a machine that the engine was not compiled for; as `open_sessions`.
Sessions open_trt_sessions(const Bundle& bundle);

}  // namespace nvlm
