// numpy's PCG64 generator, seeded as numpy.random.PCG64(seed): the stream that numpy promises to keep.

#pragma once

#include <cstdint>

namespace nvlm {

class Pcg64 {
  public:
    explicit Pcg64(std::uint64_t seed) noexcept;

    std::uint64_t next() noexcept;
    // In [0, 1), a multiple of 2^-53; as numpy's Generator.random.
    double uniform() noexcept;

  private:
    __extension__ using Wide = unsigned __int128;

    void step() noexcept;

    Wide state_;
    Wide increment_;
};

}  // namespace nvlm
