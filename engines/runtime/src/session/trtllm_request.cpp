#include "session/trtllm_request.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/sha256.hpp"
#include "base/words.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

// The executor's own default.
constexpr double most_of_free = 0.9;
constexpr std::uint32_t float_infinity = 0x7f800000U;

std::string counted(std::size_t count) {
    return grouped(static_cast<std::int64_t>(count));
}

std::string gigabytes(double bytes) {
    const auto hundredths = static_cast<std::int64_t>(std::llround(bytes / 1e7));
    const std::string rest = std::to_string(hundredths % 100);
    return std::to_string(hundredths / 100) + "." + (rest.size() < 2 ? "0" : "") + rest + " GB";
}

void check_room(const TokenRequest& request, const TrtLlmFacts& facts) {
    const std::size_t visual = request.visual_positions.size();
    if (visual > facts.table_rows) {
        throw Error(Status::usage,
                    "the request has " + counted(visual) + " visual tokens, and the engine's prompt table " +
                        counted(facts.table_rows) + " rows",
                    "send fewer or less elongated images, or compile the engine for more tiles");
    }
    if (request.ids.size() >= facts.context) {
        throw Error(Status::usage,
                    "the prompt has " + counted(request.ids.size()) + " tokens, and the engine takes " +
                        counted(facts.context - 1),
                    "shorten the prompt, send fewer images, or compile the engine with a larger context");
    }
}

std::vector<std::int32_t> prompt_ids(const TokenRequest& request, std::int64_t vocab_size) {
    std::vector<std::int32_t> ids;
    std::size_t seen = 0;
    for (std::size_t place = 0; place < request.ids.size(); ++place) {
        const bool visual = seen < request.visual_positions.size() &&
                            request.visual_positions[seen] == static_cast<std::int64_t>(place);
        const std::int64_t id = visual ? vocab_size + static_cast<std::int64_t>(seen++) : request.ids[place];
        if (!visual && (id < 0 || id >= vocab_size)) {
            throw Error(Status::failure, "the prompt has token ids outside the vocabulary of " +
                                             grouped(vocab_size) + " tokens");
        }
        ids.push_back(static_cast<std::int32_t>(id));
    }
    return ids;
}

std::vector<std::uint64_t> extra_ids(const TokenRequest& request, std::size_t tokens_per_tile) {
    if (request.tiles.size() * tokens_per_tile != request.visual_positions.size()) {
        throw Error(Status::failure, std::to_string(request.tiles.size()) + " tiles have no " +
                                         std::to_string(request.visual_positions.size()) + " visual tokens");
    }
    std::vector<std::uint64_t> ids(request.ids.size());
    std::uint64_t hash = 0;
    for (std::size_t i = 0; i < request.visual_positions.size(); ++i) {
        const std::size_t tile = i / tokens_per_tile;
        if (i % tokens_per_tile == 0) hash = tile_hash(request.tiles[tile], request.tile_bytes);
        ids.at(static_cast<std::size_t>(request.visual_positions[i])) = hash;
    }
    return ids;
}

bool is_finite(std::uint16_t bits, TableType type) {
    const unsigned exponent = type == TableType::float16 ? 0x7c00U : 0x7f80U;
    return (bits & exponent) != exponent;
}

std::vector<std::uint16_t> table_of(const TokenRequest& request, const TrtLlmFacts& facts) {
    std::vector<std::uint16_t> table(request.visual_positions.size() * facts.hidden_size);
    for (std::size_t i = 0; i < table.size(); ++i) {
        table[i] = to_table(request.visual_tokens[i], facts.dtype);
        if (!is_finite(table[i], facts.dtype)) {
            throw Error(Status::failure,
                        std::string("visual tokens are not finite in ") +
                            (facts.dtype == TableType::float16 ? "float16" : "bfloat16"),
                        "the vision engine overflows: compile it with norms in FP32, or in BF16");
        }
    }
    return table;
}

// Without both limits the executor would decode greedily.
void set_sampling(ExecutorRequest& made, const SamplingParameters& sampling) {
    if (sampling.temperature == 0.0) return;
    made.top_k = static_cast<std::int32_t>(
        std::min<std::int64_t>(sampling.top_k, std::numeric_limits<std::int32_t>::max()));
    made.top_p = static_cast<float>(sampling.top_p);
    made.temperature = static_cast<float>(sampling.temperature);
    made.seed = sampling.seed;
}

std::uint16_t to_float16(std::uint32_t bits) {
    const auto sign = static_cast<std::uint16_t>(bits >> 16U & 0x8000U);
    const std::uint32_t size = bits & 0x7fffffffU;
    if (size > float_infinity) return static_cast<std::uint16_t>(sign | 0x7e00U);
    // From 65,520 on the nearest number is infinite.
    if (size >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);
    // Below 2^-14 all numbers are multiples of 2^-24, and so is what a float of this size is rounded to.
    if (size < 0x38800000U) {
        float value = 0;
        std::memcpy(&value, &size, sizeof value);
        return static_cast<std::uint16_t>(sign | static_cast<unsigned>(std::lrint(value * 0x1p24F)));
    }
    const std::uint32_t odd = size >> 13U & 1U;
    return static_cast<std::uint16_t>(sign | ((size - 0x38000000U + 0xfffU + odd) >> 13U));
}

std::uint16_t to_bfloat16(std::uint32_t bits) {
    if ((bits & 0x7fffffffU) > float_infinity) return static_cast<std::uint16_t>(bits >> 16U | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U);
}

}  // namespace

TrtLlmFacts TrtLlmFacts::of(const Manifest& manifest, const ModelConfig& config) {
    const Fields llm(manifest.section("llm"), manifest.path(), "llm");
    const Fields cache = llm.section("kv_cache");
    const std::int64_t most = std::numeric_limits<std::int64_t>::max();
    const std::string dtype = llm.text("dtype");
    if (dtype != "float16" && dtype != "bfloat16") llm.fail("dtype", "must be float16 or bfloat16");
    TrtLlmFacts facts;
    facts.vocab_size = llm.integer("vocab_size");
    facts.context = static_cast<std::size_t>(llm.integer("context_length"));
    facts.table_rows = static_cast<std::size_t>(llm.integer("max_prompt_embedding_table_size") /
                                                llm.integer("max_batch_size"));
    facts.tokens_per_tile = static_cast<std::size_t>(config.visual_tokens_per_tile);
    facts.hidden_size = static_cast<std::size_t>(config.hidden_size);
    facts.dtype = dtype == "float16" ? TableType::float16 : TableType::bfloat16;
    facts.kv_tokens = cache.integer("max_tokens");
    facts.reserved_bytes = static_cast<double>(cache.integer("reserved_bytes", 0, most));
    facts.chunked_context = llm.flag("paged_context_fmha");
    facts.ranks = llm.integer("tp") * llm.integer("pp");
    return facts;
}

ExecutorRequest assemble(const TokenRequest& request, const TrtLlmFacts& facts, bool has_extra_ids) {
    check_room(request, facts);
    ExecutorRequest made;
    made.ids = prompt_ids(request, facts.vocab_size);
    made.table_rows = request.visual_positions.size();
    made.table = table_of(request, facts);
    if (made.table_rows > 0 && has_extra_ids) made.extra_ids = extra_ids(request, facts.tokens_per_tile);
    made.max_tokens =
        static_cast<std::int32_t>(std::min(request.max_new_tokens, facts.context - request.ids.size()));
    made.end_id = static_cast<std::int32_t>(request.end_id);
    set_sampling(made, request.sampling);
    return made;
}

std::uint64_t tile_hash(const std::uint8_t* tile, std::size_t bytes) {
    Sha256 digest;
    digest.add(tile, bytes);
    const std::uint64_t hash = std::stoull(digest.finish().substr(0, 16), nullptr, 16);
    return hash == 0 ? 1 : hash;
}

std::uint16_t to_table(float value, TableType type) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return type == TableType::float16 ? to_float16(bits) : to_bfloat16(bits);
}

double kv_fraction(double free_bytes, double reserved_bytes) {
    if (free_bytes <= reserved_bytes) {
        throw Error(Status::unsuitable,
                    "beside the weights " + gigabytes(std::max(free_bytes, 0.0)) +
                        " of device memory are free, and the vision engine needs " +
                        gigabytes(reserved_bytes) + ": nothing is left for keys and values",
                    "end what else uses the GPU, or compile for fewer tiles");
    }
    return std::min(most_of_free, 1.0 - reserved_bytes / free_bytes);
}

}  // namespace nvlm
