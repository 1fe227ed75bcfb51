// Compiled with -msse4.1 and called only where the processor has it.

#include <smmintrin.h>

#include "image/kernels.hpp"

namespace nvlm::sse41 {

namespace {

// Low parts and high parts of sums, joined modulo 2^32 and shifted to whole numbers.
__m128i whole(__m128i low, __m128i high) {
    const __m128i sum = _mm_add_epi32(low, _mm_slli_epi32(high, low_bits));
    return _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (weight_bits - 1))), weight_bits);
}

void store_pixel(__m128i low, __m128i high, std::uint8_t* out) {
    const __m128i value = whole(low, high);
    const __m128i words = _mm_packs_epi32(value, value);
    const std::uint32_t bytes = static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
    out[0] = static_cast<std::uint8_t>(bytes);
    out[1] = static_cast<std::uint8_t>(bytes >> 8U);
    out[2] = static_cast<std::uint8_t>(bytes >> 16U);
}

__m128i two_weights(const std::int16_t* weights) {
    const int pair = static_cast<int>(static_cast<std::uint16_t>(weights[0])) | (weights[1] * (1 << 16));
    return _mm_set1_epi32(pair);
}

void horizontal(const HorizontalJob& job) {
    // [r0 r1 g0 g1 b0 b1 - -] as 16-bit numbers
    const __m128i order = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const Weights& weights = job.weights;
    for (int x = 0; x < weights.size; ++x) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(x) * weights.stride;
        std::ptrdiff_t from = static_cast<std::ptrdiff_t>(weights.first[x]) * 3;
        __m128i low[4], high[4];
        for (int row = 0; row < 4; ++row) low[row] = high[row] = _mm_setzero_si128();
        for (int tap = 0; tap < weights.count[x]; tap += 2, from += 6) {
            const __m128i w_low = two_weights(weights.low + at + tap);
            const __m128i w_high = two_weights(weights.high + at + tap);
            for (int row = 0; row < 4; ++row) {
                const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(job.in[row] + from));
                const __m128i pixels = _mm_shuffle_epi8(bytes, order);
                low[row] = _mm_add_epi32(low[row], _mm_madd_epi16(pixels, w_low));
                high[row] = _mm_add_epi32(high[row], _mm_madd_epi16(pixels, w_high));
            }
        }
        for (int row = 0; row < 4; ++row) {
            store_pixel(low[row], high[row], job.out[row] + static_cast<std::ptrdiff_t>(x) * 3);
        }
    }
}

void vertical(const VerticalJob& job) {
    const __m128i zero = _mm_setzero_si128();
    for (std::size_t x = 0; x < job.pitch; x += 16) {
        __m128i low[4] = {zero, zero, zero, zero};
        __m128i high[4] = {zero, zero, zero, zero};
        for (int tap = 0; tap < job.count; tap += 2) {
            const std::uint8_t* row = job.in + job.pitch * static_cast<std::size_t>(tap) + x;
            // The weight behind the last tap is zero: any row will do.
            const std::uint8_t* next = tap + 1 < job.count ? row + job.pitch : row;
            const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
            const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(next));
            const __m128i w_low = two_weights(job.low + tap), w_high = two_weights(job.high + tap);
            const __m128i front = _mm_unpacklo_epi8(a, b), back = _mm_unpackhi_epi8(a, b);
            const __m128i pairs[4] = {_mm_unpacklo_epi8(front, zero), _mm_unpackhi_epi8(front, zero),
                                      _mm_unpacklo_epi8(back, zero), _mm_unpackhi_epi8(back, zero)};
            for (int part = 0; part < 4; ++part) {
                low[part] = _mm_add_epi32(low[part], _mm_madd_epi16(pairs[part], w_low));
                high[part] = _mm_add_epi32(high[part], _mm_madd_epi16(pairs[part], w_high));
            }
        }
        const __m128i front = _mm_packs_epi32(whole(low[0], high[0]), whole(low[1], high[1]));
        const __m128i back = _mm_packs_epi32(whole(low[2], high[2]), whole(low[3], high[3]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(job.out + x), _mm_packus_epi16(front, back));
    }
}

}  // namespace

const Kernels kernels = {"sse4.1", horizontal, vertical};

}  // namespace nvlm::sse41
