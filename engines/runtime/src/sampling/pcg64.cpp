#include "sampling/pcg64.hpp"

#include <array>
#include <cstddef>

namespace nvlm {
namespace {

using Pool = std::array<std::uint32_t, 4>;

// numpy's SeedSequence (M. E. O'Neill, "Developing a seed_seq alternative"), for a seed of two words.
class SeedHash {
  public:
    SeedHash(std::uint32_t start, std::uint32_t factor) noexcept : constant_(start), factor_(factor) {}

    std::uint32_t operator()(std::uint32_t value) noexcept {
        value ^= constant_;
        constant_ *= factor_;
        value *= constant_;
        return value ^ (value >> 16U);
    }

  private:
    std::uint32_t constant_;
    std::uint32_t factor_;
};

std::uint32_t mixed(std::uint32_t one, std::uint32_t other) noexcept {
    const std::uint32_t value = 0xca01f9ddU * one - 0x4973f715U * other;
    return value ^ (value >> 16U);
}

Pool mixed_pool(std::uint64_t seed) noexcept {
    SeedHash hash(0x43b0d7e5U, 0x931e8875U);
    Pool pool{};
    pool[0] = hash(static_cast<std::uint32_t>(seed));
    pool[1] = hash(static_cast<std::uint32_t>(seed >> 32U));
    pool[2] = hash(0);
    pool[3] = hash(0);
    for (std::size_t source = 0; source < pool.size(); ++source) {
        for (std::size_t target = 0; target < pool.size(); ++target) {
            if (source != target) pool[target] = mixed(pool[target], hash(pool[source]));
        }
    }
    return pool;
}

std::array<std::uint64_t, 4> seed_words(std::uint64_t seed) noexcept {
    const Pool pool = mixed_pool(seed);
    SeedHash hash(0x8b51f9ddU, 0x58f38dedU);
    std::array<std::uint64_t, 4> words{};
    for (std::size_t i = 0; i < 2 * words.size(); ++i) {
        words[i / 2] |= std::uint64_t{hash(pool[i % pool.size()])} << (32U * (i % 2));
    }
    return words;
}

}  // namespace

Pcg64::Pcg64(std::uint64_t seed) noexcept : state_(0), increment_(0) {
    const std::array<std::uint64_t, 4> words = seed_words(seed);
    increment_ = (((Wide{words[2]} << 64U) | words[3]) << 1U) | 1U;
    step();
    state_ += (Wide{words[0]} << 64U) | words[1];
    step();
}

void Pcg64::step() noexcept {
    constexpr Wide factor = (Wide{2549297995355413924U} << 64U) | 4865540595714422341U;
    state_ = state_ * factor + increment_;
}

std::uint64_t Pcg64::next() noexcept {
    step();
    const auto high = static_cast<std::uint64_t>(state_ >> 64U);
    const std::uint64_t value = high ^ static_cast<std::uint64_t>(state_);
    const auto turn = static_cast<unsigned>(high >> 58U);
    return (value >> turn) | (value << ((64U - turn) & 63U));
}

double Pcg64::uniform() noexcept {
    return static_cast<double>(next() >> 11U) * 0x1p-53;
}

}  // namespace nvlm
