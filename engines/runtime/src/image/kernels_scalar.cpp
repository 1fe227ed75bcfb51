#include "image/kernels.hpp"

namespace nvlm::scalar {

namespace {

std::uint8_t rounded(std::int32_t sum) {
    const std::int32_t value = (sum + (1 << (weight_bits - 1))) >> weight_bits;
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

std::int32_t weight(std::int16_t low, std::int16_t high) {
    return high * (1 << low_bits) + low;
}

void resample_row(const std::uint8_t* in, std::uint8_t* out, const Weights& weights) {
    for (int x = 0; x < weights.size; ++x, out += 3) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(x) * weights.stride;
        const std::uint8_t* pixel = in + static_cast<std::ptrdiff_t>(weights.first[x]) * 3;
        std::int32_t red = 0, green = 0, blue = 0;
        for (int tap = 0; tap < weights.count[x]; ++tap, pixel += 3) {
            const std::int32_t w = weight(weights.low[at + tap], weights.high[at + tap]);
            red += w * pixel[0];
            green += w * pixel[1];
            blue += w * pixel[2];
        }
        out[0] = rounded(red);
        out[1] = rounded(green);
        out[2] = rounded(blue);
    }
}

void horizontal(const HorizontalJob& job) {
    for (int row = 0; row < 4; ++row) {
        // Rows at the end of an image are given more than once.
        if (row > 0 && job.out[row] == job.out[row - 1]) continue;
        resample_row(job.in[row], job.out[row], job.weights);
    }
}

void vertical(const VerticalJob& job) {
    for (std::size_t x = 0; x < job.pitch; ++x) {
        std::int32_t sum = 0;
        for (int tap = 0; tap < job.count; ++tap) {
            sum +=
                weight(job.low[tap], job.high[tap]) * job.in[x + job.pitch * static_cast<std::size_t>(tap)];
        }
        job.out[x] = rounded(sum);
    }
}

}  // namespace

const Kernels kernels = {"scalar", horizontal, vertical};

}  // namespace nvlm::scalar
