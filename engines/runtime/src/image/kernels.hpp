// The inner loops of the resize, one set per instruction set; all of them give the same bytes.
//
// Included by files that are compiled for newer processors than the rest: plain types only, so that no
// inline function of the standard library is compiled for one of those.

#pragma once

#include <cstddef>
#include <cstdint>

namespace nvlm {

constexpr int weight_bits = 22;
constexpr int low_bits = 12;

// Weights of consecutive outputs. A weight is high x 2^12 + low with low in [0, 2^12), so that 16-bit
// products serve; those behind an output's `count`, up to `stride` (a multiple of four), are zero.
struct Weights {
    const int* first;
    const int* count;
    const std::int16_t* low;
    const std::int16_t* high;
    int stride;
    int size;
};

// Four rows of RGB at a time, so that a weight is loaded once for all of them. Rows may be the same.
// `out` points to the first output of `weights`. Up to 16 bytes behind a row's end are read.
struct HorizontalJob {
    const std::uint8_t* in[4];
    std::uint8_t* out[4];
    Weights weights;
};

// One output row. `in` is the first of the rows that it is made of, each `pitch` bytes long; weights are
// those of this row. Up to 31 bytes behind a row's end are read and written.
struct VerticalJob {
    const std::uint8_t* in;
    std::size_t pitch;
    std::uint8_t* out;
    const std::int16_t* low;
    const std::int16_t* high;
    int count;
};

struct Kernels {
    const char* name;
    void (*horizontal)(const HorizontalJob& job);
    void (*vertical)(const VerticalJob& job);
};

// The fastest that this processor can run.
const Kernels& best_kernels();

// `scalar`, `sse4.1`, `avx2` or `neon`; null if this build or this processor has no such set.
const Kernels* find_kernels(const char* name);

namespace scalar {
extern const Kernels kernels;
}
namespace sse41 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

}  // namespace nvlm
