#include "sampling/exact_exp.hpp"

#include <array>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __FAST_MATH__
#error "sampled tokens would differ from Python's: compile without -ffast-math"
#endif

namespace nvlm {
namespace {

static_assert(FLT_EVAL_METHOD == 0, "float64 must be computed as float64");

constexpr double smallest = -700.0;
constexpr double one_by_ln2 = 0x1.71547652b82fep+0;
// ln 2 in two parts: the product of the first with any exponent is exact.
constexpr double ln2_high = 0x1.62e42feep-1;
constexpr double ln2_low = 0x1.a39ef35793c76p-33;

constexpr std::size_t degree = 13;

// 1 / k!, highest first.
constexpr std::array<double, degree + 1> make_coefficients() {
    std::array<double, degree + 1> coefficients{};
    double factorial = 1.0;
    for (std::size_t k = 0; k <= degree; ++k) {
        if (k > 1) factorial *= static_cast<double>(k);
        coefficients[degree - k] = 1.0 / factorial;
    }
    return coefficients;
}

constexpr std::array<double, degree + 1> coefficients = make_coefficients();

// 2^exponent for normal results.
double power_of_two(double exponent) noexcept {
    const auto bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(exponent) + 1023) << 52U;
    double power = 0;
    std::memcpy(&power, &bits, sizeof(power));
    return power;
}

}  // namespace

double exact_exp(double x) noexcept {
    if (!(x >= smallest)) return x < smallest ? 0.0 : x;
    const double exponent = std::nearbyint(x * one_by_ln2);
    const double rest = (x - exponent * ln2_high) - exponent * ln2_low;
    double result = coefficients[0];
    for (std::size_t k = 1; k <= degree; ++k) result = result * rest + coefficients[k];
    return result * power_of_two(exponent);
}

}  // namespace nvlm
