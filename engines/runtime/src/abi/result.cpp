// Results, errors, and the parts that can be used alone.

#include "abi/handles.hpp"

using namespace nvlm;
using namespace nvlm::abi;

namespace {

constexpr int json_indent = 2;

double timing_of(const Result& result, const std::string& stage) {
    for (const auto& [name, milliseconds] : result.timings) {
        if (name == stage) return milliseconds;
    }
    throw Error(Status::usage, "there is no stage '" + stage + "'",
                "known: tile, tokenize, vision, prefill, first_token, decode, per_token, total");
}

}  // namespace

const char* nvlm_version(void) {
    return NVLM_VERSION;
}

const char* nvlm_last_error(void) {
    return last_error();
}

const char* nvlm_last_hint(void) {
    return last_hint();
}

nvlm_status nvlm_result_get_info(const nvlm_result* result, nvlm_result_info* info) {
    return guard("nvlm_result_get_info", [&] {
        const Result& made = result_of(result);
        nvlm_result_info filled{};
        filled.finish_reason =
            made.finish_reason == FinishReason::stop ? NVLM_FINISH_STOP : NVLM_FINISH_LENGTH;
        filled.prompt_tokens = made.input_ids.size();
        filled.output_tokens = made.output_ids.size();
        filled.first_token_ms = timing_of(made, "first_token");
        filled.per_token_ms = timing_of(made, "per_token");
        filled.total_ms = timing_of(made, "total");
        write_struct(filled, info, "info");
    });
}

nvlm_status nvlm_result_text(const nvlm_result* result, char* buffer, size_t capacity, size_t* length) {
    return guard("nvlm_result_text", [&] { write_text(result_of(result).text, buffer, capacity, length); });
}

nvlm_status nvlm_result_tokens(const nvlm_result* result, int32_t prompt, int64_t* ids, size_t capacity,
                               size_t* length) {
    return guard("nvlm_result_tokens", [&] {
        const Result& made = result_of(result);
        const std::vector<std::int64_t>& all = prompt != 0 ? made.input_ids : made.output_ids;
        write_buffer(all.data(), all.size(), 0, ids, capacity, length);
    });
}

nvlm_status nvlm_result_timing(const nvlm_result* result, const char* stage, double* milliseconds) {
    return guard("nvlm_result_timing", [&] {
        require(stage, "stage");
        require(milliseconds, "milliseconds");
        *milliseconds = timing_of(result_of(result), stage);
    });
}

nvlm_status nvlm_result_json(const nvlm_result* result, char* buffer, size_t capacity, size_t* length) {
    return guard("nvlm_result_json",
                 [&] { write_text(result_of(result).to_json(json_indent), buffer, capacity, length); });
}

void nvlm_result_free(nvlm_result* result) {
    guard("nvlm_result_free", [&] { delete result; });
}

nvlm_status nvlm_tile(const nvlm_engine* engine, const nvlm_image* image, uint8_t* tiles, size_t capacity,
                      size_t* length, int32_t* columns, int32_t* rows) {
    return guard("nvlm_tile", [&] {
        const TiledImage tiled = engine_of(engine).tile(image_input(image));
        if (columns != nullptr) *columns = tiled.grid.columns;
        if (rows != nullptr) *rows = tiled.grid.rows;
        write_buffer(tiled.pixels.data(), tiled.pixels.size(), 0, tiles, capacity, length);
    });
}

nvlm_status nvlm_tokenize(const nvlm_engine* engine, const char* text, int64_t* ids, size_t capacity,
                          size_t* length) {
    return guard("nvlm_tokenize", [&] {
        require(text, "text");
        const std::vector<std::int64_t> all = engine_of(engine).tokenizer().encode(text);
        write_buffer(all.data(), all.size(), 0, ids, capacity, length);
    });
}

nvlm_status nvlm_detokenize(const nvlm_engine* engine, const int64_t* ids, size_t count, char* buffer,
                            size_t capacity, size_t* length) {
    return guard("nvlm_detokenize", [&] {
        if (count > 0) require(ids, "ids");
        const std::vector<std::int64_t> all(ids, ids + count);
        write_text(engine_of(engine).tokenizer().decode(all, true), buffer, capacity, length);
    });
}

nvlm_status nvlm_cache_prefetch(nvlm_engine* engine, const nvlm_image* image,
                                nvlm_cancellation* cancellation) {
    return guard("nvlm_cache_prefetch", [&] {
        Cancellation own;
        Cancellation& used = cancellation == nullptr ? own : cancellation->cancellation;
        engine_of(engine).prefetch(image_input(image), used);
    });
}

nvlm_status nvlm_cache_get_info(const nvlm_engine* engine, nvlm_cache_info* info) {
    return guard("nvlm_cache_get_info", [&] {
        const ImageCacheFacts facts = engine_of(engine).image_cache().facts();
        write_struct(nvlm_cache_info{0, facts.hits, facts.misses, facts.entries, facts.bytes}, info, "info");
    });
}

nvlm_status nvlm_cache_clear(nvlm_engine* engine) {
    return guard("nvlm_cache_clear", [&] { engine_of(engine).image_cache().clear(); });
}
