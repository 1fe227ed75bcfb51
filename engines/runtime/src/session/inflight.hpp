// Engines that schedule requests themselves and sample on their device: requests in, tokens out.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/cancellation.hpp"
#include "sampling/sampler.hpp"

namespace nvlm {

// One prompt. `visual_positions`: ascending places of placeholders in `ids`; `visual_tokens` has a row of
// hidden size for each. `tiles`: the 8-bit tiles that they were made of, one pointer each.
struct TokenRequest {
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> visual_positions;
    const float* visual_tokens = nullptr;
    std::vector<const std::uint8_t*> tiles;
    std::size_t tile_bytes = 0;
    std::size_t max_new_tokens = 0;
    std::int64_t end_id = 0;
    SamplingParameters sampling;
};

// What a request has got since the last update; `final`: there will be no more.
struct TokenUpdate {
    std::vector<std::int64_t> tokens;
    bool final = false;
};

// Many requests are in flight at once; every method may be called by several threads.
class InflightSession {
  public:
    virtual ~InflightSession() = default;

    // Start a request; returns its number. Throws Error (usage): it does not fit the engine.
    virtual std::uint64_t submit(const TokenRequest& request) = 0;
    // Wait for what a request gets next. Throws Error: failure, or cancelled.
    virtual TokenUpdate next_update(std::uint64_t number, const Cancellation& cancellation) = 0;
    // End a request whose answer nobody waits for; one that has ended stays as it is.
    virtual void cancel(std::uint64_t number) noexcept = 0;
};

}  // namespace nvlm
