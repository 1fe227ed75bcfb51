// TensorRT-LLM's executor as an `InflightSession`. Not yet run on a GPU.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "session/inflight.hpp"
#include "session/trtllm_request.hpp"

namespace nvlm {

// What the executor says to one request; `error` is empty where all is well.
struct ExecutorResponse {
    std::vector<std::int32_t> tokens;
    bool final = false;
    std::string error;
};

// The calls of the executor that are made; the rest of a session is ordinary code.
class TokenExecutor {
  public:
    virtual ~TokenExecutor() = default;
    virtual bool has_extra_ids() const = 0;
    virtual std::uint64_t enqueue(const ExecutorRequest& request) = 0;
    // Responses to one request, each with the tokens since the one before; none if time is over.
    virtual std::vector<ExecutorResponse> await(std::uint64_t number, std::chrono::milliseconds most) = 0;
    virtual void cancel(std::uint64_t number) = 0;
};

std::unique_ptr<InflightSession> make_trtllm_session(std::unique_ptr<TokenExecutor> executor,
                                                     const TrtLlmFacts& facts);

}  // namespace nvlm
