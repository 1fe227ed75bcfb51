/*
 * nvlm.h: run engines of nvlm-build from C, or from anything that can call C.
 *
 *     nvlm_engine *engine = NULL;
 *     nvlm_result *result = NULL;
 *     nvlm_image image = {.struct_size = sizeof image};
 *     nvlm_request request = {.struct_size = sizeof request};
 *     char answer[4096];
 *
 *     image.path = "receipt.png";
 *     request.prompt = "What is the total?";
 *     request.images = &image;
 *     request.image_count = 1;
 *     if (nvlm_engine_open("bundle", NULL, &engine) == NVLM_OK &&
 *         nvlm_generate(engine, &request, &result) == NVLM_OK &&
 *         nvlm_result_text(result, answer, sizeof answer, NULL) == NVLM_OK) {
 *         puts(answer);
 *     } else {
 *         fprintf(stderr, "error: %s\n\nhint: %s\n", nvlm_last_error(), nvlm_last_hint());
 *     }
 *     nvlm_result_free(result);
 *     nvlm_engine_close(engine);
 *
 * Rules
 *
 * - Every structure that is passed in starts with its own size, and zero is the default of every other field:
 *   start from {.struct_size = sizeof x}. So a program stays compatible with later versions of this library.
 * - Texts are UTF-8. Those that are passed in end with a zero byte and are needed only during the call.
 * - Results are written into the caller's buffers: `length` receives the full length. With a null buffer of
 *   capacity 0 a call says how much it needs; a buffer that is too small is an error.
 * - An engine may be used by many threads at once. Everything else belongs to one thread at a time, except
 *   nvlm_cancel, which any thread may call.
 * - No exception and no signal leaves the library. What failed, and what can be done about it, is kept for
 *   the thread that called.
 */

#ifndef NVLM_NVLM_H
#define NVLM_NVLM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define NVLM_API __attribute__((visibility("default")))
#else
#define NVLM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nvlm_status {
    NVLM_OK = 0,
    NVLM_FAILURE = 1,      /* something failed: a file, memory, the backend */
    NVLM_USAGE = 2,        /* the call itself is wrong */
    NVLM_UNSUITABLE = 3,   /* this machine or this build cannot do it */
    NVLM_VERIFICATION = 4, /* the bundle does not hold what its manifest says */
    NVLM_CANCELLED = 130
} nvlm_status;

typedef struct nvlm_engine nvlm_engine;
typedef struct nvlm_result nvlm_result;
typedef struct nvlm_cancellation nvlm_cancellation;

/* The version of this library, such as "1.2.3". */
NVLM_API const char* nvlm_version(void);

/* What went wrong in this thread's last call that failed, and what to do about it; "" if there is nothing to
 * say. Valid until this thread's next call that fails. */
NVLM_API const char* nvlm_last_error(void);
NVLM_API const char* nvlm_last_hint(void);

/* ---- Engines ------------------------------------------------------------------------------------------- */

typedef struct nvlm_engine_options {
    size_t struct_size;
    int32_t threads;           /* of one operator; 0: all that this process may run on */
    int32_t mapped;            /* 1: leave the weights in the file, for models larger than memory */
    int32_t skip_digests;      /* 1: hold files against their sizes and not against their SHA-256 */
    int32_t require_verified;  /* 1: refuse a bundle that nvlm-build verify has not passed */
    int64_t image_cache_bytes; /* of images seen before; 0: 256 MiB, -1: no cache */
    const char* device;        /* NULL: "cpu" */
    const char* library;       /* the backend's library; NULL: NVLM_ONNXRUNTIME_LIBRARY, or the system's */
} nvlm_engine_options;

/* Open an engine bundle that nvlm-build wrote; `options` may be NULL. */
NVLM_API nvlm_status nvlm_engine_open(const char* bundle, const nvlm_engine_options* options,
                                      nvlm_engine** engine);

/* Close an engine that no thread uses any more; NULL is allowed. */
NVLM_API void nvlm_engine_close(nvlm_engine* engine);

typedef struct nvlm_engine_info {
    size_t struct_size;
    int32_t tile_size;              /* pixels per side */
    int32_t max_tiles;              /* of one image, without its thumbnail */
    int32_t visual_tokens_per_tile; /* tokens of the context that a tile takes */
    int32_t context;                /* tokens that prompt and answer may have together */
    int32_t vocab_size;
    char variant; /* 'D', 'X' or 'H' */
} nvlm_engine_info;

/* Fill `info`, whose struct_size is set. */
NVLM_API nvlm_status nvlm_engine_get_info(const nvlm_engine* engine, nvlm_engine_info* info);

/* ---- Requests ------------------------------------------------------------------------------------------ */

/* An image: a file by its path, or the bytes of a JPEG or PNG file, or 8-bit RGB pixels; one of the three. */
typedef struct nvlm_image {
    size_t struct_size;
    const char* path;
    const void* file;
    size_t file_size;
    const uint8_t* pixels;
    int64_t width;
    int64_t height;
    size_t stride; /* bytes from row to row; 0: rows without gaps */
} nvlm_image;

typedef struct nvlm_request {
    size_t struct_size;
    const char* prompt;   /* plain text; "<image>" marks an image's place, and without it images go first */
    const char* messages; /* or a chat: a JSON list of {"role": ..., "content": ...} */
    const nvlm_image* images;
    size_t image_count;
    size_t max_new_tokens;   /* 0: 1024 */
    const char* const* stop; /* texts that end the answer and are no part of it */
    size_t stop_count;
    double temperature; /* 0: always the most likely token */
    int64_t top_k;      /* 0: all tokens */
    double top_p;       /* 0: 1.0, all tokens */
    uint64_t seed;
    size_t top_logits;               /* how many of the first token's largest logits the JSON has */
    nvlm_cancellation* cancellation; /* NULL: the request cannot be cancelled */
} nvlm_request;

/* Answer a request. */
NVLM_API nvlm_status nvlm_generate(nvlm_engine* engine, const nvlm_request* request, nvlm_result** result);

/* Takes the next piece of an answer: whole characters, not followed by a zero byte. Another return value than
 * 0 ends the request with NVLM_CANCELLED. */
typedef int (*nvlm_text_callback)(const char* text, size_t length, void* user);

/* Answer a request piece by piece; the callback is called by this thread, before the call returns. */
NVLM_API nvlm_status nvlm_generate_stream(nvlm_engine* engine, const nvlm_request* request,
                                          nvlm_text_callback callback, void* user, nvlm_result** result);

/* One for each request that runs at the same time. It stays cancelled until it is reset. */
NVLM_API nvlm_status nvlm_cancellation_new(nvlm_cancellation** cancellation);
NVLM_API void nvlm_cancellation_reset(nvlm_cancellation* cancellation);
NVLM_API void nvlm_cancellation_free(nvlm_cancellation* cancellation);

/* End the request that uses it, from any thread, also in the middle of a step: it returns NVLM_CANCELLED. */
NVLM_API void nvlm_cancel(nvlm_cancellation* cancellation);

/* ---- Results ------------------------------------------------------------------------------------------- */

typedef enum nvlm_finish_reason {
    NVLM_FINISH_STOP = 1,  /* the model ended its turn, or a stop text came */
    NVLM_FINISH_LENGTH = 2 /* max_new_tokens, or the engine's context */
} nvlm_finish_reason;

typedef struct nvlm_result_info {
    size_t struct_size;
    int32_t finish_reason; /* an nvlm_finish_reason */
    size_t prompt_tokens;
    size_t output_tokens;
    double first_token_ms;
    double per_token_ms;
    double total_ms;
} nvlm_result_info;

/* Fill `info`, whose struct_size is set. */
NVLM_API nvlm_status nvlm_result_get_info(const nvlm_result* result, nvlm_result_info* info);

/* The answer, with a zero byte behind it that `length` does not count; `length` may be NULL. */
NVLM_API nvlm_status nvlm_result_text(const nvlm_result* result, char* buffer, size_t capacity,
                                      size_t* length);

/* Token ids of the answer, or with `prompt` 1 of the expanded prompt; capacity and length count ids. */
NVLM_API nvlm_status nvlm_result_tokens(const nvlm_result* result, int32_t prompt, int64_t* ids,
                                        size_t capacity, size_t* length);

/* Milliseconds of a stage: tile, tokenize, vision, prefill, first_token, decode, per_token or total. */
NVLM_API nvlm_status nvlm_result_timing(const nvlm_result* result, const char* stage, double* milliseconds);

/* All of it as JSON, with the keys of `nvlm-build run --json`; as nvlm_result_text. */
NVLM_API nvlm_status nvlm_result_json(const nvlm_result* result, char* buffer, size_t capacity,
                                      size_t* length);

NVLM_API void nvlm_result_free(nvlm_result* result);

/* ---- Parts --------------------------------------------------------------------------------------------- */

/* Cut an image into the tiles that the model sees: 8-bit RGB [tiles, S, S, 3], the regular ones row by row
 * and the thumbnail last. Capacity and length count bytes; columns and rows of the grid may be NULL. */
NVLM_API nvlm_status nvlm_tile(const nvlm_engine* engine, const nvlm_image* image, uint8_t* tiles,
                               size_t capacity, size_t* length, int32_t* columns, int32_t* rows);

/* Text to token ids; special tokens in it become their ids. Capacity and length count ids. */
NVLM_API nvlm_status nvlm_tokenize(const nvlm_engine* engine, const char* text, int64_t* ids, size_t capacity,
                                   size_t* length);

/* Token ids to text without special tokens; as nvlm_result_text. */
NVLM_API nvlm_status nvlm_detokenize(const nvlm_engine* engine, const int64_t* ids, size_t count,
                                     char* buffer, size_t capacity, size_t* length);

/* Encode an image before it is asked about: the next request with the same pixels finds it in the cache. */
NVLM_API nvlm_status nvlm_cache_prefetch(nvlm_engine* engine, const nvlm_image* image,
                                         nvlm_cancellation* cancellation);

typedef struct nvlm_cache_info {
    size_t struct_size;
    uint64_t hits;
    uint64_t misses;
    size_t entries;
    size_t bytes;
} nvlm_cache_info;

/* Fill `info`, whose struct_size is set. */
NVLM_API nvlm_status nvlm_cache_get_info(const nvlm_engine* engine, nvlm_cache_info* info);
NVLM_API nvlm_status nvlm_cache_clear(nvlm_engine* engine);

#ifdef __cplusplus
}
#endif

#endif
