// A fuzzer's bytes as values.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace nvlm::fuzz {

inline void require(bool holds) {
    if (!holds) std::abort();
}

// Takes values from the front; behind the end everything is zero.
class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    bool empty() const noexcept { return left_ == 0; }

    template <class Number>
    Number number() noexcept {
        Number value{};
        const std::size_t size = std::min(sizeof value, left_);
        if (size > 0) std::memcpy(&value, data_, size);
        data_ += size;
        left_ -= size;
        return value;
    }

    // From 0 to `limit` - 1.
    std::size_t below(std::size_t limit) noexcept { return number<std::uint16_t>() % limit; }

    std::string text() {
        const std::size_t size = std::min<std::size_t>(number<std::uint8_t>(), left_);
        std::string taken(reinterpret_cast<const char*>(data_), size);
        data_ += size;
        left_ -= size;
        return taken;
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

}  // namespace nvlm::fuzz
