#include "image/kernels.hpp"

#include <cstring>

namespace nvlm {

namespace {

#if defined(NVLM_X86_KERNELS)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") != 0;
}
bool has_sse41() {
    return __builtin_cpu_supports("sse4.1") != 0;
}
#endif

const Kernels& choose() {
#if defined(NVLM_X86_KERNELS)
    if (has_avx2()) return avx2::kernels;
    if (has_sse41()) return sse41::kernels;
#elif defined(NVLM_NEON_KERNELS)
    return neon::kernels;
#endif
    return scalar::kernels;
}

}  // namespace

const Kernels& best_kernels() {
    static const Kernels& best = choose();
    return best;
}

const Kernels* find_kernels(const char* name) {
#if defined(NVLM_X86_KERNELS)
    if (std::strcmp(name, avx2::kernels.name) == 0) return has_avx2() ? &avx2::kernels : nullptr;
    if (std::strcmp(name, sse41::kernels.name) == 0) return has_sse41() ? &sse41::kernels : nullptr;
#elif defined(NVLM_NEON_KERNELS)
    if (std::strcmp(name, neon::kernels.name) == 0) return &neon::kernels;
#endif
    return std::strcmp(name, scalar::kernels.name) == 0 ? &scalar::kernels : nullptr;
}

}  // namespace nvlm
