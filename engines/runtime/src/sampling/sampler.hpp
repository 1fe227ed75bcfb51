// From logits to the next token: the very tokens of nvlm_deploy.runtime.sampling for the same seed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sampling/pcg64.hpp"

namespace nvlm {

// How a token is chosen; the default is greedy.
struct SamplingParameters {
    // 0 takes the most likely token and ignores the rest.
    double temperature = 0.0;
    // Keep the k most likely tokens; 0 keeps all.
    std::int64_t top_k = 0;
    // Keep the most likely tokens until their probabilities reach this sum, after `top_k`.
    double top_p = 1.0;
    std::uint64_t seed = 0;
};

// Throws Error (usage): a parameter out of its range.
void check(const SamplingParameters& parameters);

// The choices of one request, in order. Not to be shared between threads.
class Sampler {
  public:
    // Throws as `check`.
    explicit Sampler(SamplingParameters parameters);

    // The next token's id. Throws Error (failure): there are no logits, or, unless greedy, they are NaN or
    // their largest is infinite.
    std::int64_t choose(const float* logits, std::size_t vocabulary);

  private:
    void sort_candidates(const float* logits, std::size_t vocabulary);
    void sort_all();
    void sum_weights(const float* logits);

    SamplingParameters parameters_;
    Pcg64 random_;
    // A candidate's logit and id in one number; ascending order is that of falling logits, then of ids.
    std::vector<std::uint64_t> candidates_, buffer_;
    // Running sums of the candidates' weights, relative to the best one's.
    std::vector<double> sums_;
};

}  // namespace nvlm
