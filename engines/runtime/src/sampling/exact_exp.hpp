// e^x of float64 with the same bits everywhere, which math libraries do not promise.

#pragma once

namespace nvlm {

// For x <= 0 or NaN; 0 below -700. Relative error below 3e-16. The same operations in the same order as
// nvlm_deploy.runtime.sampling.exact_exp: each is rounded correctly by IEEE 754, and none is fused.
double exact_exp(double x) noexcept;

}  // namespace nvlm
