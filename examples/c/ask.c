/*
 * Ask an engine from C.
 *
 *     cc ask.c -o ask $(pkg-config --cflags --libs nvlm)
 *     ./ask BUNDLE QUESTION [IMAGE]
 */

#include <nvlm/nvlm.h>
#include <stdio.h>
#include <stdlib.h>

static int print_piece(const char *text, size_t length, void *user) {
  (void)user;
  fwrite(text, 1, length, stdout);
  fflush(stdout);
  return 0;
}

static int fail(nvlm_status status) {
  fprintf(stderr, "error: %s\n", nvlm_last_error());
  if (*nvlm_last_hint() != '\0')
    fprintf(stderr, "\nhint: %s\n", nvlm_last_hint());
  return status;
}

int main(int count, char **words) {
  nvlm_engine *engine = NULL;
  nvlm_result *result = NULL;
  nvlm_image image = {.struct_size = sizeof image};
  nvlm_request request = {.struct_size = sizeof request};
  nvlm_result_info info = {.struct_size = sizeof info};
  nvlm_status status;

  if (count < 3 || count > 4) {
    fprintf(stderr, "usage: %s BUNDLE QUESTION [IMAGE]\n", words[0]);
    return NVLM_USAGE;
  }
  request.prompt = words[2];
  request.max_new_tokens = 64;
  if (count == 4) {
    image.path = words[3];
    request.images = &image;
    request.image_count = 1;
  }
  status = nvlm_engine_open(words[1], NULL, &engine);
  if (status != NVLM_OK)
    return fail(status);
  status = nvlm_generate_stream(engine, &request, print_piece, NULL, &result);
  if (status == NVLM_OK)
    status = nvlm_result_get_info(result, &info);
  if (status != NVLM_OK) {
    fail(status);
  } else {
    printf("\n");
    fprintf(stderr, "%zu tokens, the first after %.1f ms, %.1f ms in all\n",
            info.output_tokens, info.first_token_ms, info.total_ms);
  }
  nvlm_result_free(result);
  nvlm_engine_close(engine);
  return status;
}
