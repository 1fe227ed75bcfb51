#include "session/trtllm_session.hpp"

#include <utility>

#include "error.hpp"

namespace nvlm {

namespace {

// One wait is no longer, so that a cancelled request is noticed.
constexpr std::chrono::milliseconds longest_wait(100);

class TrtLlmSession : public InflightSession {
  public:
    TrtLlmSession(std::unique_ptr<TokenExecutor> executor, const TrtLlmFacts& facts)
        : executor_(std::move(executor)), facts_(facts) {}

    std::uint64_t submit(const TokenRequest& request) override {
        return executor_->enqueue(assemble(request, facts_, executor_->has_extra_ids()));
    }

    TokenUpdate next_update(std::uint64_t number, const Cancellation& cancellation) override {
        TokenUpdate update;
        bool any = false;
        while (!any) {
            cancellation.throw_if_requested();
            for (const ExecutorResponse& response : executor_->await(number, longest_wait)) {
                any = true;
                // What a cancelled request still gets is not asked for.
                cancellation.throw_if_requested();
                if (!response.error.empty()) {
                    throw Error(Status::failure, "TensorRT-LLM failed on a request: " + response.error);
                }
                update.tokens.insert(update.tokens.end(), response.tokens.begin(), response.tokens.end());
                update.final = update.final || response.final;
            }
        }
        return update;
    }

    void cancel(std::uint64_t number) noexcept override {
        try {
            executor_->cancel(number);
        } catch (...) {
            // Nobody waits for it: what is left of it ends with the executor.
            return;
        }
    }

  private:
    std::unique_ptr<TokenExecutor> executor_;
    TrtLlmFacts facts_;
};

}  // namespace

std::unique_ptr<InflightSession> make_trtllm_session(std::unique_ptr<TokenExecutor> executor,
                                                     const TrtLlmFacts& facts) {
    return std::make_unique<TrtLlmSession>(std::move(executor), facts);
}

}  // namespace nvlm
