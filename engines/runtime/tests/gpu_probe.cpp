// What GPU sessions do beside calling their libraries, one line of JSON after the other:
//
//     {"verb": "assemble", "facts": {...}, "extra": BOOL, "ids": [...], "positions": [...], "visual": [...],
//      "tiles": [[byte, ...], ...], "max_new_tokens": N, "end_id": N, "temperature": ..., ...}
//         -> the executor's request
//     {"verb": "table", "values": [...]} -> {"float16": [...], "bfloat16": [...]}: bits
//     {"verb": "fraction", "free": N, "reserved": N} -> {"fraction": ...}
//     {"verb": "follow", "script": [{"tokens": [...], "final": BOOL, "error": TEXT} or null, ...],
//      "cancel_at": N} -> {"updates": [[...], ...], "cancelled": how often}; null: nothing in time
//     {"verb": "plan", "in_place": BOOL, "context": C, "piece": S, "steps": [[id, ...], ...],
//      "capacity": C, "positions": [...], "visual": [...]}
//         -> {"logits": [[...], ...] behind each step, "captured": how often}
//
// A failure is answered by {"status": S, "message": ...}.

#include <iostream>
#include <string>

#include "error.hpp"
#include "host_plan.hpp"
#include "session/trt_session.hpp"
#include "session/trtllm_session.hpp"

namespace {

using nvlm::Json;

nvlm::TrtLlmFacts facts_of(const Json& line) {
    nvlm::TrtLlmFacts facts;
    facts.vocab_size = line.at("vocab_size");
    facts.context = line.at("context");
    facts.table_rows = line.at("table_rows");
    facts.tokens_per_tile = line.at("tokens_per_tile");
    facts.hidden_size = line.at("hidden_size");
    facts.dtype = line.at("dtype") == "float16" ? nvlm::TableType::float16 : nvlm::TableType::bfloat16;
    return facts;
}

Json assemble(const Json& line) {
    nvlm::TokenRequest request;
    request.ids = line.at("ids").get<std::vector<std::int64_t>>();
    request.visual_positions = line.at("positions").get<std::vector<std::int64_t>>();
    const auto visual = line.at("visual").get<std::vector<float>>();
    request.visual_tokens = visual.data();
    const auto tiles = line.at("tiles").get<std::vector<std::vector<std::uint8_t>>>();
    for (const auto& tile : tiles) {
        request.tiles.push_back(tile.data());
        request.tile_bytes = tile.size();
    }
    request.max_new_tokens = line.at("max_new_tokens");
    request.end_id = line.at("end_id");
    request.sampling.temperature = line.at("temperature");
    request.sampling.top_k = line.at("top_k");
    request.sampling.top_p = line.at("top_p");
    request.sampling.seed = line.at("seed");
    const nvlm::ExecutorRequest made = nvlm::assemble(request, facts_of(line.at("facts")), line.at("extra"));
    return {{"ids", made.ids},
            {"table", made.table},
            {"table_rows", made.table_rows},
            {"extra_ids", made.extra_ids},
            {"max_tokens", made.max_tokens},
            {"end_id", made.end_id},
            {"top_k", made.top_k},
            {"top_p", made.top_p ? Json(*made.top_p) : Json()},
            {"temperature", made.temperature ? Json(*made.temperature) : Json()},
            {"seed", made.seed ? Json(*made.seed) : Json()}};
}

Json table(const Json& line) {
    Json half = Json::array(), brain = Json::array();
    for (const float value : line.at("values").get<std::vector<float>>()) {
        half.push_back(nvlm::to_table(value, nvlm::TableType::float16));
        brain.push_back(nvlm::to_table(value, nvlm::TableType::bfloat16));
    }
    return {{"float16", half}, {"bfloat16", brain}};
}

// Says what it is told to, and cancels on the way.
class ScriptedExecutor : public nvlm::TokenExecutor {
  public:
    ScriptedExecutor(const Json& line, nvlm::Cancellation& cancellation, int& cancelled)
        : script_(line.at("script")),
          cancel_at_(line.value("cancel_at", -1)),
          cancellation_(cancellation),
          cancelled_(cancelled) {}

    bool has_extra_ids() const override { return true; }
    std::uint64_t enqueue(const nvlm::ExecutorRequest& request) override { return request.ids.size(); }
    std::vector<nvlm::ExecutorResponse> await(std::uint64_t, std::chrono::milliseconds) override {
        const std::size_t at = next_++;
        if (static_cast<int>(at) == cancel_at_) cancellation_.cancel();
        const Json& said = script_.at(at);
        if (said.is_null()) return {};
        nvlm::ExecutorResponse response;
        response.tokens = said.value("tokens", response.tokens);
        response.final = said.value("final", false);
        response.error = said.value("error", "");
        return {response};
    }
    void cancel(std::uint64_t) override { ++cancelled_; }

  private:
    Json script_;
    int cancel_at_;
    nvlm::Cancellation& cancellation_;
    int& cancelled_;
    std::size_t next_ = 0;
};

Json follow(const Json& line) {
    nvlm::Cancellation cancellation;
    int cancelled = 0;
    nvlm::TrtLlmFacts facts;
    facts.vocab_size = 9;
    facts.context = 9;
    const auto session =
        nvlm::make_trtllm_session(std::make_unique<ScriptedExecutor>(line, cancellation, cancelled), facts);
    nvlm::TokenRequest request;
    request.ids = {1, 2, 3};
    request.max_new_tokens = 4;
    const std::uint64_t number = session->submit(request);
    Json answer = {{"number", number}, {"updates", Json::array()}, {"status", 0}};
    try {
        for (bool more = true; more;) {
            const nvlm::TokenUpdate update = session->next_update(number, cancellation);
            answer["updates"].push_back(update.tokens);
            more = !update.final;
        }
    } catch (const nvlm::Error& error) {
        session->cancel(number);
        answer["status"] = static_cast<int>(error.status());
        answer["message"] = error.what();
    }
    answer["cancelled"] = cancelled;
    return answer;
}

Json plan(const Json& line) {
    const auto device = std::make_shared<HostDevice>();
    const HostSizes sizes = {line.at("context"), line.at("piece"), line.at("in_place")};
    const auto session = nvlm::make_plan_decoder(device, std::make_unique<HostPlan>(device, sizes));
    const auto cache = session->new_cache(line.at("capacity"));
    nvlm::Cancellation cancellation;
    auto positions = line.at("positions").get<std::vector<std::int64_t>>();
    const auto visual = line.at("visual").get<std::vector<float>>();
    Json logits = Json::array();
    for (const Json& each : line.at("steps")) {
        const auto ids = each.get<std::vector<std::int64_t>>();
        const nvlm::DecoderStep step = {ids.data(), ids.size(), visual.data(), positions.data(),
                                        positions.size()};
        const float* made = session->run(step, *cache, cancellation);
        logits.push_back(std::vector<float>(made, made + session->vocab_size()));
        // Images stand in the first step alone.
        positions.clear();
    }
    return {{"logits", logits}, {"captured", device->captured}, {"capacity", cache->capacity()}};
}

Json answer(const Json& line) {
    const std::string verb = line.at("verb");
    if (verb == "assemble") return assemble(line);
    if (verb == "table") return table(line);
    if (verb == "follow") return follow(line);
    if (verb == "plan") return plan(line);
    return {{"fraction", nvlm::kv_fraction(line.at("free"), line.at("reserved"))}};
}

}  // namespace

int main() {
    for (std::string text; std::getline(std::cin, text);) {
        try {
            std::cout << answer(Json::parse(text)).dump() << std::endl;
        } catch (const nvlm::Error& error) {
            const Json told = {{"status", static_cast<int>(error.status())}, {"message", error.what()}};
            std::cout << told.dump() << std::endl;
        }
    }
    return 0;
}
