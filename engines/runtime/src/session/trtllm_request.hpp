// Requests to TensorRT-LLM's executor: prompt table, ids behind the vocabulary, sampling, the cache's share.
//
// One table holds the visual tokens of all tiles of a request, in order. The k-th of them stands in the
// prompt as id `vocab_size + k`, with the vocabulary of the decoder's config.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.hpp"
#include "bundle/model_config.hpp"
#include "session/inflight.hpp"

namespace nvlm {

enum class TableType { float16, bfloat16 };

// What requests must fit, from the manifest's section `llm`. `table_rows`: of one request's prompt table.
// `kv_tokens`: of all requests in flight. `reserved_bytes`: device memory that stays free beside the cache.
struct TrtLlmFacts {
    std::int64_t vocab_size = 0;
    std::size_t context = 0;
    std::size_t table_rows = 0;
    std::size_t tokens_per_tile = 0;
    std::size_t hidden_size = 0;
    TableType dtype = TableType::float16;
    std::int64_t kv_tokens = 0;
    double reserved_bytes = 0;
    bool chunked_context = false;
    std::int64_t ranks = 1;

    // Throws Error (failure): a field is missing or out of range; names it.
    static TrtLlmFacts of(const Manifest& manifest, const ModelConfig& config);
};

// What a `Request` of the executor is made of, whatever the release. `table`: [rows, hidden size] in the
// decoder's type; empty without images. `extra_ids`: one for each id; empty where a release has none.
struct ExecutorRequest {
    std::vector<std::int32_t> ids;
    std::vector<std::uint16_t> table;
    std::size_t table_rows = 0;
    std::vector<std::uint64_t> extra_ids;
    std::int32_t max_tokens = 0;
    std::int32_t end_id = 0;
    std::int32_t top_k = 1;
    std::optional<float> top_p;
    std::optional<float> temperature;
    std::optional<std::uint64_t> seed;
};

// Put a request together; `has_extra_ids`: whether the release takes them. Throws Error: usage for one that
// does not fit the engine, failure for ids outside of the vocabulary or visual tokens that are not finite.
ExecutorRequest assemble(const TokenRequest& request, const TrtLlmFacts& facts, bool has_extra_ids);

// 64 bits of a tile, never 0, which is the number of text. Keys and values of earlier requests are reused
// where ids and extra ids agree from the start, and a visual token depends on its tile alone.
std::uint64_t tile_hash(const std::uint8_t* tile, std::size_t bytes);

// To 16 bits, ties to even, as bits. Numbers beyond the largest become infinite.
std::uint16_t to_table(float value, TableType type);

// Share of the free memory beside the weights that the cache may take. Throws Error (unsuitable): nothing is
// left for it.
double kv_fraction(double free_bytes, double reserved_bytes);

}  // namespace nvlm
