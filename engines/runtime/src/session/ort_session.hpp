// Engines run by ONNX Runtime on the CPU.

#pragma once

#include "session/session.hpp"

namespace nvlm {

Sessions open_ort_sessions(const Bundle& bundle, const SessionOptions& options);

}  // namespace nvlm
