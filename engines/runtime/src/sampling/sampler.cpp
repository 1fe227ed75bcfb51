#include "sampling/sampler.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "error.hpp"
#include "sampling/exact_exp.hpp"

namespace nvlm {
namespace {

// With fewer candidates a partial sort is faster than sorting all.
constexpr std::size_t few_candidates = 1024;
constexpr unsigned digit_bits = 11;
constexpr std::size_t digits = std::size_t{1} << digit_bits;

// Falling logits in rising order; NaN last, and -0 equal to 0, as numpy sorts.
std::uint32_t sort_key(float logit) noexcept {
    if (std::isnan(logit)) return 0xffffffffU;
    const float value = logit + 0.0F;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return (bits & 0x80000000U) != 0 ? bits : ~(bits | 0x80000000U);
}

std::size_t id_of(std::uint64_t candidate) noexcept {
    return candidate & 0xffffffffU;
}

// The first of the largest; NaN is larger than all, as in numpy.
std::size_t most_likely(const float* logits, std::size_t vocabulary) noexcept {
    std::size_t best = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) {
        if (std::isnan(logits[i])) return i;
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

[[noreturn]] void refuse(const char* name, const std::string& value, const char* what,
                         const char* hint = "") {
    throw Error(Status::usage, std::string(name) + " is " + value + "; it must " + what, hint);
}

}  // namespace

void check(const SamplingParameters& parameters) {
    const double temperature = parameters.temperature;
    if (!std::isfinite(temperature) || temperature < 0) {
        refuse("temperature", std::to_string(temperature), "be 0 (greedy) or positive");
    }
    if (parameters.top_k < 0) {
        refuse("top_k", std::to_string(parameters.top_k), "be 0 (all tokens) or positive");
    }
    if (!(parameters.top_p > 0 && parameters.top_p <= 1)) {
        refuse("top_p", std::to_string(parameters.top_p), "lie above 0 and at most at 1",
               "the released config's top_p 0 means greedy decoding: temperature=0");
    }
}

Sampler::Sampler(SamplingParameters parameters) : parameters_(parameters), random_(parameters.seed) {
    check(parameters);
}

std::int64_t Sampler::choose(const float* logits, std::size_t vocabulary) {
    if (vocabulary == 0) throw Error(Status::failure, "the engine gave no logits");
    if (parameters_.temperature == 0) return static_cast<std::int64_t>(most_likely(logits, vocabulary));
    sort_candidates(logits, vocabulary);
    if (!std::isfinite(logits[id_of(candidates_.front())]) || std::isnan(logits[id_of(candidates_.back())])) {
        throw Error(Status::failure, "the engine's logits are not finite",
                    "check the engine: nvlm-build verify BUNDLE");
    }
    sum_weights(logits);
    // The token that crosses the threshold still belongs to the nucleus.
    const double threshold = parameters_.top_p * sums_.back();
    const auto crossing = std::lower_bound(sums_.begin(), sums_.end() - 1, threshold);
    const double draw = random_.uniform() * *crossing;
    const auto drawn = std::min(std::upper_bound(sums_.begin(), crossing + 1, draw), crossing);
    return static_cast<std::int64_t>(id_of(candidates_[static_cast<std::size_t>(drawn - sums_.begin())]));
}

void Sampler::sort_candidates(const float* logits, std::size_t vocabulary) {
    candidates_.resize(vocabulary);
    for (std::size_t i = 0; i < vocabulary; ++i) {
        candidates_[i] = (std::uint64_t{sort_key(logits[i])} << 32U) | i;
    }
    const auto wanted = static_cast<std::uint64_t>(parameters_.top_k);
    const bool cut = wanted != 0 && wanted < vocabulary;
    if (cut && wanted < few_candidates) {
        const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(wanted);
        std::partial_sort(candidates_.begin(), end, candidates_.end());
    } else {
        sort_all();
    }
    if (cut) candidates_.resize(wanted);
}

// Radix sort by the upper half; the lower one, the id, is in order already.
void Sampler::sort_all() {
    buffer_.resize(candidates_.size());
    for (unsigned shift = 32; shift < 64; shift += digit_bits) {
        std::array<std::size_t, digits> places{};
        const auto digit = [shift](std::uint64_t candidate) { return (candidate >> shift) & (digits - 1); };
        for (const std::uint64_t candidate : candidates_) ++places[digit(candidate)];
        std::size_t next = 0;
        for (std::size_t& place : places) {
            const std::size_t count = place;
            place = next;
            next += count;
        }
        for (const std::uint64_t candidate : candidates_) buffer_[places[digit(candidate)]++] = candidate;
        candidates_.swap(buffer_);
    }
}

void Sampler::sum_weights(const float* logits) {
    const auto best = static_cast<double>(logits[id_of(candidates_.front())]);
    sums_.resize(candidates_.size());
    double sum = 0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
        const auto logit = static_cast<double>(logits[id_of(candidates_[i])]);
        sum += exact_exp((logit - best) / parameters_.temperature);
        sums_[i] = sum;
    }
}

}  // namespace nvlm
