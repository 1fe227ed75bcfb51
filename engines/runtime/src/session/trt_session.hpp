// Plans to visual tokens and logits: what is the same for every library that runs plans. Not yet run on a
// GPU.

#pragma once

#include <memory>

#include "session/session.hpp"
#include "session/trt_device.hpp"
#include "session/trt_plan.hpp"

namespace nvlm {

// Both throw Error (failure): the plan is none that nvlm-build makes.
std::unique_ptr<VisionSession> make_plan_vision(std::shared_ptr<Device> device, std::unique_ptr<Plan> plan);
std::unique_ptr<DecoderSession> make_plan_decoder(std::shared_ptr<Device> device, std::unique_ptr<Plan> plan);

}  // namespace nvlm
