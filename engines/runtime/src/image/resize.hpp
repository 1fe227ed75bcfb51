// Pillow's bicubic resize of 8-bit images, to the bit.
//
// Source of the rule: Pillow, libImaging/Resample.c (`ImagingResample`): weights are computed in double
// precision, rounded to 22 fractional bits, and each of the two passes rounds to 8 bits. The order of the
// passes is that of Pillow 13, whose pixels of tall images differ from those of earlier versions.

#pragma once

#include <string>
#include <vector>

#include "image/image.hpp"
#include "image/kernels.hpp"

namespace nvlm {

// Stretch to `width` x `height` without keeping the aspect.
Image resize_bicubic(const Image& image, int width, int height, const Kernels& kernels = best_kernels());

// The weights of outputs `begin` to `end` of a pass that makes `out_size` pixels of `in_size`.
class WeightTable {
  public:
    WeightTable(int in_size, int out_size, int begin, int end);
    Weights view() const noexcept;

    // How many outputs one table should hold so that it stays small for images of any length.
    static int band(int in_size, int out_size);

  private:
    int stride_;
    std::vector<int> first_;
    std::vector<int> count_;
    std::vector<std::int16_t> low_;
    std::vector<std::int16_t> high_;
};

}  // namespace nvlm
