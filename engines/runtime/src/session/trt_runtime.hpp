// Plans of TensorRT 10 and 11. Not yet run on a GPU.

#pragma once

#include <memory>
#include <string>

#include "session/trt_cuda.hpp"
#include "session/trt_plan.hpp"

namespace nvlm {

// Version of the TensorRT that runs, as 10.3.0.
std::string tensorrt_version();

// Throws Error: failure for a file that cannot be read, unsuitable for a plan of another GPU or version.
std::unique_ptr<Plan> open_trt_plan(const std::string& path, std::shared_ptr<CudaDevice> device);

}  // namespace nvlm
