#include "session/trtllm_executor.hpp"

#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <optional>
#include <type_traits>

#include <tensorrt_llm/executor/executor.h>
#include <tensorrt_llm/plugins/api/tllmPlugin.h>

#include "error.hpp"
#include "session/trt_cuda.hpp"

namespace nvlm {

namespace {

namespace llm = tensorrt_llm::executor;

using ExtraIds = std::vector<std::uint64_t>;

// Releases differ in this alone of what is used here: 0.12 has no extra ids, without which keys and values of
// one image could be reused for another.
template <class Config>
constexpr bool takes_extra_ids = std::is_constructible_v<Config, llm::Tensor, std::optional<ExtraIds>>;

template <class Config>
Config table_config(const llm::Tensor& table, const ExtraIds& extra) {
    if constexpr (takes_extra_ids<Config>) {
        return Config(table, extra.empty() ? std::nullopt : std::optional<ExtraIds>(extra));
    } else {
        return Config(table);
    }
}

// Errors of the library are exceptions of the standard library, whose text has many lines.
template <class Call>
auto guarded(const std::string& what, Call call) {
    try {
        return call();
    } catch (const std::exception& error) {
        const std::string text = error.what();
        throw Error(Status::failure, what + ": " + text.substr(0, text.find('\n')),
                    "engines run on the device and with the TensorRT-LLM that built them: compile the kit");
    }
}

llm::Tensor tensor_of(const ExecutorRequest& request, TableType type) {
    const auto rows = static_cast<std::int64_t>(request.table_rows);
    const auto columns = static_cast<std::int64_t>(request.table.size() / request.table_rows);
    // In host memory: the executor copies it to the device.
    llm::Tensor table = llm::Tensor::cpu(
        type == TableType::float16 ? llm::DataType::kFP16 : llm::DataType::kBF16, {rows, columns});
    std::memcpy(table.getData(), request.table.data(), request.table.size() * sizeof(std::uint16_t));
    return table;
}

llm::SamplingConfig sampling_of(const ExecutorRequest& request) {
    return llm::SamplingConfig(1, request.top_k, request.top_p, std::nullopt, std::nullopt, std::nullopt,
                               request.seed, request.temperature);
}

// Room for the vision engine's activations stays free; on a Jetson, whose memory the CPU shares, the fraction
// alone would take nearly all of it.
llm::KvCacheConfig cache_config(const std::string& directory, const TrtLlmFacts& facts) {
    const auto weights = static_cast<double>(std::filesystem::file_size(directory + "/rank0.engine"));
    const double left = static_cast<double>(free_cuda_bytes()) - weights;
    llm::KvCacheConfig config(takes_extra_ids<llm::PromptTuningConfig> && facts.chunked_context);
    config.setMaxTokens(static_cast<llm::SizeType32>(facts.kv_tokens));
    config.setFreeGpuMemoryFraction(static_cast<float>(kv_fraction(left, facts.reserved_bytes)));
    return config;
}

class TrtLlmExecutor : public TokenExecutor {
  public:
    TrtLlmExecutor(const std::string& directory, const TrtLlmFacts& facts) : dtype_(facts.dtype) {
        static std::once_flag plugins;
        std::call_once(plugins, [] { initTrtLlmPlugins(); });
        llm::ExecutorConfig config(1);
        config.setKvCacheConfig(cache_config(directory, facts));
        config.setEnableChunkedContext(facts.chunked_context);
        guarded(directory + " cannot be opened", [&] {
            executor_ = std::make_unique<llm::Executor>(std::filesystem::path(directory),
                                                        llm::ModelType::kDECODER_ONLY, config);
        });
    }

    bool has_extra_ids() const override { return takes_extra_ids<llm::PromptTuningConfig>; }

    std::uint64_t enqueue(const ExecutorRequest& request) override {
        return guarded("TensorRT-LLM refuses a request", [&] {
            llm::OutputConfig output;
            output.excludeInputFromOutput = true;
            // The arguments that come after these differ between releases.
            llm::Request made(request.ids, request.max_tokens, true, sampling_of(request), output,
                              request.end_id, request.end_id);
            if (request.table_rows > 0) {
                made.setPromptTuningConfig(
                    table_config<llm::PromptTuningConfig>(tensor_of(request, dtype_), request.extra_ids));
            }
            return static_cast<std::uint64_t>(executor_->enqueueRequest(made));
        });
    }

    std::vector<ExecutorResponse> await(std::uint64_t number, std::chrono::milliseconds most) override {
        return guarded("TensorRT-LLM failed", [&] {
            std::vector<ExecutorResponse> responses;
            for (const llm::Response& each : executor_->awaitResponses(llm::IdType(number), most)) {
                ExecutorResponse response;
                if (each.hasError()) {
                    response.error = each.getErrorMsg();
                    if (response.error.empty()) response.error = "it does not say why";
                } else {
                    const llm::Result& result = each.getResult();
                    response.tokens = result.outputTokenIds.at(0);
                    response.final = result.isFinal;
                }
                responses.push_back(std::move(response));
            }
            return responses;
        });
    }

    void cancel(std::uint64_t number) override { executor_->cancelRequest(number); }

  private:
    TableType dtype_;
    std::unique_ptr<llm::Executor> executor_;
};

}  // namespace

std::string trtllm_version() {
    return llm::version();
}

std::unique_ptr<TokenExecutor> open_trtllm_executor(const std::string& directory, const TrtLlmFacts& facts) {
    return std::make_unique<TrtLlmExecutor>(directory, facts);
}

}  // namespace nvlm
