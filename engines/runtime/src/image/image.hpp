// An RGB image in memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace nvlm {

// 8-bit RGB rows without gaps. Kernels may read and write up to `padding` bytes behind the last pixel.
class Image {
  public:
    static constexpr std::size_t padding = 32;

    Image() = default;
    // The pixels are not initialized: whoever makes an image writes all of them.
    Image(int width, int height)
        : width_(width), height_(height), bytes_(new std::uint8_t[size_bytes() + padding]) {
        std::memset(bytes_.get() + size_bytes(), 0, padding);
    }

    int width() const noexcept { return width_; }
    int height() const noexcept { return height_; }
    std::size_t row_bytes() const noexcept { return static_cast<std::size_t>(width_) * 3; }
    std::size_t size_bytes() const noexcept { return row_bytes() * static_cast<std::size_t>(height_); }
    std::uint8_t* row(int y) noexcept { return bytes_.get() + row_bytes() * static_cast<std::size_t>(y); }
    const std::uint8_t* row(int y) const noexcept {
        return bytes_.get() + row_bytes() * static_cast<std::size_t>(y);
    }
    Image copy() const {
        Image twin(width_, height_);
        std::memcpy(twin.bytes_.get(), bytes_.get(), size_bytes());
        return twin;
    }

  private:
    int width_ = 0;
    int height_ = 0;
    std::unique_ptr<std::uint8_t[]> bytes_;
};

}  // namespace nvlm
