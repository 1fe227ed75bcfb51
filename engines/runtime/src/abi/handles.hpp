// What the opaque handles of nvlm.h are.

#pragma once

#include <memory>

#include "abi/guard.hpp"
#include "engine/engine.hpp"

struct nvlm_engine {
    std::unique_ptr<nvlm::Engine> engine;
};

struct nvlm_result {
    nvlm::Result result;
};

struct nvlm_cancellation {
    nvlm::Cancellation cancellation;
};

namespace nvlm::abi {

inline Engine& engine_of(const nvlm_engine* handle) {
    require(handle, "engine");
    return *handle->engine;
}

inline const Result& result_of(const nvlm_result* handle) {
    require(handle, "result");
    return handle->result;
}

inline std::string text_or(const char* text, const char* otherwise) {
    return text != nullptr ? text : otherwise;
}

ImageInput image_input(const nvlm_image* image);

}  // namespace nvlm::abi
