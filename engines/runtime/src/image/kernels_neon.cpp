#include <arm_neon.h>

#include "image/kernels.hpp"

namespace nvlm::neon {

namespace {

// Low parts and high parts of sums, joined modulo 2^32, shifted to whole numbers and clipped to 16 bits.
int16x4_t whole(int32x4_t low, int32x4_t high) {
    const int32x4_t sum = vaddq_s32(low, vshlq_n_s32(high, low_bits));
    return vqmovn_s32(vshrq_n_s32(vaddq_s32(sum, vdupq_n_s32(1 << (weight_bits - 1))), weight_bits));
}

// The first four of eight bytes as 16-bit numbers: a pixel, and the red of the next.
int16x4_t load_pixel(const std::uint8_t* in) {
    return vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(in))));
}

void store_pixel(int32x4_t low, int32x4_t high, std::uint8_t* out) {
    const int16x4_t value = whole(low, high);
    const uint8x8_t bytes = vqmovun_s16(vcombine_s16(value, value));
    out[0] = vget_lane_u8(bytes, 0);
    out[1] = vget_lane_u8(bytes, 1);
    out[2] = vget_lane_u8(bytes, 2);
}

void horizontal(const HorizontalJob& job) {
    const Weights& weights = job.weights;
    for (int x = 0; x < weights.size; ++x) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(x) * weights.stride;
        std::ptrdiff_t from = static_cast<std::ptrdiff_t>(weights.first[x]) * 3;
        int32x4_t low[4], high[4];
        for (int row = 0; row < 4; ++row) low[row] = high[row] = vdupq_n_s32(0);
        for (int tap = 0; tap < weights.count[x]; ++tap, from += 3) {
            const std::int16_t w_low = weights.low[at + tap], w_high = weights.high[at + tap];
            for (int row = 0; row < 4; ++row) {
                const int16x4_t pixel = load_pixel(job.in[row] + from);
                low[row] = vmlal_n_s16(low[row], pixel, w_low);
                high[row] = vmlal_n_s16(high[row], pixel, w_high);
            }
        }
        for (int row = 0; row < 4; ++row) {
            store_pixel(low[row], high[row], job.out[row] + static_cast<std::ptrdiff_t>(x) * 3);
        }
    }
}

void vertical(const VerticalJob& job) {
    for (std::size_t x = 0; x < job.pitch; x += 16) {
        int32x4_t low[4], high[4];
        for (int part = 0; part < 4; ++part) low[part] = high[part] = vdupq_n_s32(0);
        for (int tap = 0; tap < job.count; ++tap) {
            const uint8x16_t bytes = vld1q_u8(job.in + job.pitch * static_cast<std::size_t>(tap) + x);
            const int16x8_t front = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
            const int16x8_t back = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
            const int16x4_t parts[4] = {vget_low_s16(front), vget_high_s16(front), vget_low_s16(back),
                                        vget_high_s16(back)};
            for (int part = 0; part < 4; ++part) {
                low[part] = vmlal_n_s16(low[part], parts[part], job.low[tap]);
                high[part] = vmlal_n_s16(high[part], parts[part], job.high[tap]);
            }
        }
        const int16x8_t front = vcombine_s16(whole(low[0], high[0]), whole(low[1], high[1]));
        const int16x8_t back = vcombine_s16(whole(low[2], high[2]), whole(low[3], high[3]));
        vst1q_u8(job.out + x, vcombine_u8(vqmovun_s16(front), vqmovun_s16(back)));
    }
}

}  // namespace

const Kernels kernels = {"neon", horizontal, vertical};

}  // namespace nvlm::neon
