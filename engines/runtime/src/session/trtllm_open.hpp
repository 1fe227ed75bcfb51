// Engines of TensorRT-LLM on one GPU: a vision plan, and the executor. NVLM-D alone.

#pragma once

#include "session/session.hpp"

namespace nvlm {

// Throws Error: unsuitable for a machine that the engine was not compiled for, or several ranks; as
// `open_sessions`.
Sessions open_trtllm_sessions(const Bundle& bundle);

}  // namespace nvlm
