/* nvlm.h alone is C11, and nothing else has to be included before it. */
#include "nvlm/nvlm.h"

nvlm_status open_and_close(const char* bundle);

nvlm_status open_and_close(const char* bundle) {
    nvlm_engine_options options = {.struct_size = sizeof options};
    nvlm_engine* engine = NULL;
    nvlm_status status = nvlm_engine_open(bundle, &options, &engine);
    nvlm_engine_close(engine);
    return status;
}
