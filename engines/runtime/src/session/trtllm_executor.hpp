// TensorRT-LLM's executor: releases 0.12 and 1.x. Not yet run on a GPU.

#pragma once

#include <memory>
#include <string>

#include "session/trtllm_session.hpp"

namespace nvlm {

std::string trtllm_version();

// Open `config.json` and `rank0.engine` in `directory`. Throws Error: failure for an engine that cannot be
// opened, unsuitable for too little memory.
std::unique_ptr<TokenExecutor> open_trtllm_executor(const std::string& directory, const TrtLlmFacts& facts);

}  // namespace nvlm
