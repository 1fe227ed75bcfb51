// Compiled with -ffp-contract=off: a fused multiply-add would round some weights in another way.

#include "image/resize.hpp"

#include <algorithm>
#include <cmath>

namespace nvlm {

namespace {

constexpr double bicubic_support = 2.0;
constexpr std::size_t max_weights = std::size_t{1} << 24U;

// Keys' cubic with a = -0.5.
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

struct Geometry {
    double scale;
    double filter_scale;
    double support;

    Geometry(int in_size, int out_size)
        : scale(static_cast<double>(in_size) / out_size),
          filter_scale(std::max(scale, 1.0)),
          support(bicubic_support * filter_scale) {}

    int max_taps() const { return static_cast<int>(std::ceil(support)) * 2 + 1; }
};

// As a cast does: towards zero, which is another rounding than `lround` has for numbers below -0.5.
int truncated(double value) {
    return static_cast<int>(value);
}

int padded_taps(int taps) {
    return (taps + 3) / 4 * 4;
}

std::int32_t fixed_point(double weight) {
    const double scaled = weight * (1 << weight_bits);
    return static_cast<std::int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

Image stretch_horizontally(const Image& image, int width, const Kernels& kernels) {
    Image stretched(width, image.height());
    const int band = WeightTable::band(image.width(), width);
    for (int begin = 0; begin < width; begin += band) {
        const WeightTable table(image.width(), width, begin, std::min(begin + band, width));
        HorizontalJob job{};
        job.weights = table.view();
        for (int y = 0; y < image.height(); y += 4) {
            for (int i = 0; i < 4; ++i) {
                const int row = std::min(y + i, image.height() - 1);
                job.in[i] = image.row(row);
                job.out[i] = stretched.row(row) + static_cast<std::ptrdiff_t>(begin) * 3;
            }
            kernels.horizontal(job);
        }
    }
    return stretched;
}

Image stretch_vertically(const Image& image, int height, const Kernels& kernels) {
    Image stretched(image.width(), height);
    const int band = WeightTable::band(image.height(), height);
    for (int begin = 0; begin < height; begin += band) {
        const int end = std::min(begin + band, height);
        const WeightTable table(image.height(), height, begin, end);
        const Weights weights = table.view();
        for (int y = begin; y < end; ++y) {
            const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(y - begin) * weights.stride;
            kernels.vertical({image.row(weights.first[y - begin]), image.row_bytes(), stretched.row(y),
                              weights.low + at, weights.high + at, weights.count[y - begin]});
        }
    }
    return stretched;
}

// Which pass comes first shows in the pixels, since each rounds. Pillow 13 starts with the vertical one where
// the image loses more than twice as many rows as columns; older versions always start with the horizontal.
bool vertical_first(const Image& image, int width, int height) {
    return image.height() > height &&
           image.height() - height > 2 * (static_cast<std::int64_t>(image.width()) - width);
}

}  // namespace

WeightTable::WeightTable(int in_size, int out_size, int begin, int end) {
    const Geometry geometry(in_size, out_size);
    const auto outputs = static_cast<std::size_t>(end - begin);
    stride_ = padded_taps(geometry.max_taps());
    first_.resize(outputs);
    count_.resize(outputs);
    low_.assign(outputs * static_cast<std::size_t>(stride_), 0);
    high_.assign(low_.size(), 0);
    std::vector<double> taps(static_cast<std::size_t>(stride_));
    for (std::size_t i = 0; i < outputs; ++i) {
        const double center = (begin + static_cast<int>(i) + 0.5) * geometry.scale;
        const double inverse = 1.0 / geometry.filter_scale;
        const int first = std::max(truncated(center - geometry.support + 0.5), 0);
        const int count = std::min(truncated(center + geometry.support + 0.5), in_size) - first;
        double sum = 0.0;
        for (int tap = 0; tap < count; ++tap) {
            const double weight = bicubic((tap + first - center + 0.5) * inverse);
            taps[static_cast<std::size_t>(tap)] = weight;
            sum += weight;
        }
        for (std::size_t tap = 0; tap < static_cast<std::size_t>(count); ++tap) {
            const std::int32_t weight = fixed_point(sum != 0.0 ? taps[tap] / sum : taps[tap]);
            const std::size_t at = i * static_cast<std::size_t>(stride_) + tap;
            low_[at] = static_cast<std::int16_t>(weight & ((1 << low_bits) - 1));
            high_[at] = static_cast<std::int16_t>(weight >> low_bits);
        }
        first_[i] = first;
        count_[i] = count;
    }
}

Weights WeightTable::view() const noexcept {
    return {first_.data(), count_.data(), low_.data(),
            high_.data(),  stride_,       static_cast<int>(first_.size())};
}

int WeightTable::band(int in_size, int out_size) {
    const auto taps = static_cast<std::size_t>(padded_taps(Geometry(in_size, out_size).max_taps()));
    return static_cast<int>(
        std::clamp<std::size_t>(max_weights / taps, 1, static_cast<std::size_t>(out_size)));
}

Image resize_bicubic(const Image& image, int width, int height, const Kernels& kernels) {
    if (image.width() == width) {
        return image.height() == height ? image.copy() : stretch_vertically(image, height, kernels);
    }
    if (image.height() == height) return stretch_horizontally(image, width, kernels);
    if (vertical_first(image, width, height)) {
        return stretch_horizontally(stretch_vertically(image, height, kernels), width, kernels);
    }
    return stretch_vertically(stretch_horizontally(image, width, kernels), height, kernels);
}

}  // namespace nvlm
