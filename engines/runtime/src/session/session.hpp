// What a backend's sessions look like to the engine. One prompt at a time; several threads may use the same
// session with a cache of their own each.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/cancellation.hpp"
#include "bundle/bundle.hpp"
#include "session/inflight.hpp"

namespace nvlm {

// `threads`: of one operator; 0 uses all that this process may run on. `mapped`: leave weights in the file.
// `library`: path of the backend's library; empty looks for it.
struct SessionOptions {
    int threads = 0;
    bool mapped = false;
    std::string device = "cpu";
    std::string library;
};

class VisionSession {
  public:
    virtual ~VisionSession() = default;
    virtual const GraphFacts& facts() const = 0;
    // Bytes of one tile, S x S x 3.
    virtual std::size_t tile_bytes() const = 0;
    // Floats of one tile's visual tokens: tokens x hidden size.
    virtual std::size_t floats_per_tile() const = 0;
    // 8-bit RGB tiles [count, S, S, 3] to visual tokens [count, tokens, hidden size], written to `tokens`.
    virtual void encode(const std::uint8_t* tiles, std::size_t count, float* tokens,
                        Cancellation& cancellation) const = 0;
};

// Keys and values of tiles for cross-attention, of one image or of all images of a request. `arrays`: by the
// name of the decoder's input, [G, L, K] each, with G KV heads, L entries and K numbers in a head. `tiles`:
// for each of the L entries the tile that it belongs to, -1 for none.
struct TileStates {
    struct Array {
        std::string name;
        std::vector<float> numbers;
    };

    std::vector<Array> arrays;
    std::vector<std::int64_t> tiles;
    std::size_t kv_heads = 0;

    std::int64_t tile_count() const noexcept;
    std::size_t bytes() const noexcept;
};

// Visual tokens to what cross-attention attends to, in NVLM-X and NVLM-H; asked once per image.
class TileSession {
  public:
    virtual ~TileSession() = default;
    virtual const GraphFacts& facts() const = 0;
    virtual std::size_t floats_per_tile() const = 0;
    // Visual tokens [count, tokens, hidden size] of one image's tiles in cross-attention, in order, to keys
    // and values. Throws Error: failure, or cancelled.
    virtual TileStates states(const float* tokens, std::size_t count, Cancellation& cancellation) const = 0;
};

// Tiles [first, second) of a request's tiles in cross-attention.
using TileRange = std::pair<std::int64_t, std::int64_t>;

// Keys and values of one prompt; made by a decoder session, and used by one thread at a time.
class KvCache {
  public:
    virtual ~KvCache() = default;
    virtual std::size_t length() const = 0;
    virtual std::size_t capacity() const = 0;
};

// New tokens. `visual_tokens`: rows of hidden size that replace embeddings at `visual_positions`, which are
// ascending places among these tokens. `tiles`: null without cross-attention or images; it must outlive the
// cache, and be the same in every step. `visible`: what each of the new tokens sees of them.
struct DecoderStep {
    const std::int64_t* ids = nullptr;
    std::size_t count = 0;
    const float* visual_tokens = nullptr;
    const std::int64_t* visual_positions = nullptr;
    std::size_t visual_count = 0;
    const TileStates* tiles = nullptr;
    const TileRange* visible = nullptr;
};

class DecoderSession {
  public:
    virtual ~DecoderSession() = default;
    virtual const GraphFacts& facts() const = 0;
    virtual std::size_t hidden_size() const = 0;
    virtual std::size_t vocab_size() const = 0;
    virtual std::unique_ptr<KvCache> new_cache(std::size_t capacity) const = 0;
    // Append the tokens to the cache; return the logits behind the last of them, valid until the next call
    // with this cache. Throws Error: failure, or cancelled; the cache is of no use then.
    virtual const float* run(const DecoderStep& step, KvCache& cache, Cancellation& cancellation) const = 0;
};

// `tiles`: null for NVLM-D. An engine has a decoder that is driven step by step, or drives itself (`inflight`).
struct Sessions {
    std::unique_ptr<VisionSession> vision;
    std::unique_ptr<TileSession> tiles;
    std::unique_ptr<DecoderSession> decoder;
    std::unique_ptr<InflightSession> inflight = nullptr;
};

// Open all with the backend that the manifest names, and hold their graphs against it. Throws Error: failure
// for a damaged file, unsuitable for what this build, library or machine cannot run, verification for a field
// that a graph contradicts.
Sessions open_sessions(const Bundle& bundle, const SessionOptions& options);

}  // namespace nvlm
