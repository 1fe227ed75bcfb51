// Compiled with -mavx2 and called only where the processor has it.

#include <immintrin.h>

#include "image/kernels.hpp"

namespace nvlm::avx2 {

namespace {

// Low parts and high parts of sums, joined modulo 2^32 and shifted to whole numbers.
__m256i whole(__m256i low, __m256i high) {
    const __m256i sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, low_bits));
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (weight_bits - 1))), weight_bits);
}

// Two taps of one pixel's lanes in the first half, the next two in the second.
void store_pixel(__m256i low, __m256i high, std::uint8_t* out) {
    const __m256i sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, low_bits));
    const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i value =
        _mm_srai_epi32(_mm_add_epi32(both, _mm_set1_epi32(1 << (weight_bits - 1))), weight_bits);
    const __m128i words = _mm_packs_epi32(value, value);
    const std::uint32_t bytes = static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
    out[0] = static_cast<std::uint8_t>(bytes);
    out[1] = static_cast<std::uint8_t>(bytes >> 8U);
    out[2] = static_cast<std::uint8_t>(bytes >> 16U);
}

__m256i load_weights(const std::int16_t* four) {
    // [0 1 0 1 0 1 0 1 | 2 3 2 3 2 3 2 3]
    const __m256i order = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
                                           4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(four));
    return _mm256_shuffle_epi8(_mm256_broadcastq_epi64(packed), order);
}

__m256i load_pixels(const std::uint8_t* in) {
    // [r0 r1 g0 g1 b0 b1 - - | r2 r3 g2 g3 b2 b3 - -] as 16-bit numbers
    const __m256i order = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
}

void horizontal(const HorizontalJob& job) {
    const Weights& weights = job.weights;
    for (int x = 0; x < weights.size; ++x) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(x) * weights.stride;
        std::ptrdiff_t from = static_cast<std::ptrdiff_t>(weights.first[x]) * 3;
        __m256i low[4], high[4];
        for (int row = 0; row < 4; ++row) low[row] = high[row] = _mm256_setzero_si256();
        for (int tap = 0; tap < weights.count[x]; tap += 4, from += 12) {
            const __m256i w_low = load_weights(weights.low + at + tap);
            const __m256i w_high = load_weights(weights.high + at + tap);
            for (int row = 0; row < 4; ++row) {
                const __m256i pixels = load_pixels(job.in[row] + from);
                low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pixels, w_low));
                high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pixels, w_high));
            }
        }
        for (int row = 0; row < 4; ++row) {
            store_pixel(low[row], high[row], job.out[row] + static_cast<std::ptrdiff_t>(x) * 3);
        }
    }
}

__m256i two_weights(const std::int16_t* weights) {
    const int pair = static_cast<int>(static_cast<std::uint16_t>(weights[0])) | (weights[1] * (1 << 16));
    return _mm256_set1_epi32(pair);
}

void vertical(const VerticalJob& job) {
    const __m256i zero = _mm256_setzero_si256();
    for (std::size_t x = 0; x < job.pitch; x += 32) {
        __m256i low[4] = {zero, zero, zero, zero};
        __m256i high[4] = {zero, zero, zero, zero};
        for (int tap = 0; tap < job.count; tap += 2) {
            const std::uint8_t* row = job.in + job.pitch * static_cast<std::size_t>(tap) + x;
            // The weight behind the last tap is zero: any row will do.
            const std::uint8_t* next = tap + 1 < job.count ? row + job.pitch : row;
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
            const __m256i w_low = two_weights(job.low + tap), w_high = two_weights(job.high + tap);
            const __m256i front = _mm256_unpacklo_epi8(a, b), back = _mm256_unpackhi_epi8(a, b);
            const __m256i pairs[4] = {_mm256_unpacklo_epi8(front, zero), _mm256_unpackhi_epi8(front, zero),
                                      _mm256_unpacklo_epi8(back, zero), _mm256_unpackhi_epi8(back, zero)};
            for (int part = 0; part < 4; ++part) {
                low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(pairs[part], w_low));
                high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(pairs[part], w_high));
            }
        }
        const __m256i front = _mm256_packs_epi32(whole(low[0], high[0]), whole(low[1], high[1]));
        const __m256i back = _mm256_packs_epi32(whole(low[2], high[2]), whole(low[3], high[3]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(job.out + x), _mm256_packus_epi16(front, back));
    }
}

}  // namespace

const Kernels kernels = {"avx2", horizontal, vertical};

}  // namespace nvlm::avx2
