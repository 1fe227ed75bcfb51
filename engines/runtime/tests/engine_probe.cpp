// Answers requests with one engine, one line of JSON after the other:
//
//     engine_probe BUNDLE
//     {"verb": "generate", "prompt": TEXT or "messages": [...], "images": [FILE, ...], ...}
//         -> the result's JSON in one line, with the pieces of its stream as "pieces"
//     {"verb": "parallel", "threads": N, "repeats": M, "requests": [...]}
//         -> {"wrong": how many answers were others than those given serially}
//     {"verb": "cancel", "pieces": N, ...}  cancels from another thread after N pieces of the stream
//         -> {"status": S, "pieces": how many came}
//     {"verb": "tokenize", "text": TEXT} -> {"ids": [...], "text": the ids' text}
//     {"verb": "cache"} -> {"hits": ..., "misses": ..., "entries": ..., "bytes": ...}
//
// A failure is answered by {"status": S, "message": ..., "hint": ...}.

#include <atomic>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "nvlm/nvlm.hpp"

namespace {

using Json = nlohmann::ordered_json;

nvlm::Request request_of(const Json& line) {
    nvlm::Request request(line.value("prompt", ""));
    if (line.contains("messages")) request.messages = line["messages"].dump();
    for (const std::string& path : line.value("images", std::vector<std::string>())) request.add_image(path);
    request.stop = line.value("stop", request.stop);
    request.max_new_tokens = line.value("max_new_tokens", request.max_new_tokens);
    request.temperature = line.value("temperature", request.temperature);
    request.top_k = line.value("top_k", request.top_k);
    request.top_p = line.value("top_p", request.top_p);
    request.seed = line.value("seed", request.seed);
    request.top_logits = line.value("top_logits", request.top_logits);
    return request;
}

Json generate(const nvlm::Engine& engine, const Json& line) {
    std::vector<std::string> pieces;
    const nvlm::Result result =
        engine.generate(request_of(line), [&](std::string_view piece) { pieces.emplace_back(piece); });
    Json json = Json::parse(result.json());
    json["pieces"] = pieces;
    return json;
}

Json parallel(const nvlm::Engine& engine, const Json& line) {
    std::vector<nvlm::Request> requests;
    std::vector<std::vector<std::int64_t>> expected;
    for (const Json& each : line.at("requests")) {
        requests.push_back(request_of(each));
        expected.push_back(engine.generate(requests.back()).output_ids());
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    const int count = line.at("threads");
    threads.reserve(static_cast<std::size_t>(count));
    for (int number = 0; number < count; ++number) {
        threads.emplace_back([&, number] {
            for (int i = 0; i < line.at("repeats").get<int>(); ++i) {
                const std::size_t which = static_cast<std::size_t>(number + i) % requests.size();
                try {
                    if (engine.generate(requests[which]).output_ids() != expected[which]) ++wrong;
                } catch (const nvlm::Failure&) {
                    ++wrong;
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return {{"wrong", wrong.load()}};
}

Json cancel(const nvlm::Engine& engine, const Json& line) {
    nvlm::Cancellation cancellation;
    nvlm::Request request = request_of(line);
    request.cancellation = &cancellation;
    const int wanted = line.at("pieces").get<int>();
    int pieces = 0;
    std::thread other;
    if (wanted == 0) cancellation.cancel();
    int status = NVLM_OK;
    try {
        engine.generate(request, [&](std::string_view) {
            if (++pieces != wanted) return;
            other = std::thread([&] { cancellation.cancel(); });
            other.join();
        });
    } catch (const nvlm::Failure& failure) {
        status = failure.status();
    }
    return {{"status", status}, {"pieces", pieces}};
}

Json answer(const nvlm::Engine& engine, const Json& line) {
    const std::string verb = line.at("verb");
    if (verb == "parallel") return parallel(engine, line);
    if (verb == "cancel") return cancel(engine, line);
    if (verb == "tokenize") {
        const std::vector<std::int64_t> ids = engine.tokenize(line.at("text"));
        return {{"ids", ids}, {"text", engine.detokenize(ids)}};
    }
    if (verb == "cache") {
        const nvlm_cache_info info = engine.cache_info();
        return {
            {"hits", info.hits}, {"misses", info.misses}, {"entries", info.entries}, {"bytes", info.bytes}};
    }
    return generate(engine, line);
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return NVLM_USAGE;
    try {
        nvlm::EngineOptions options;
        options.threads = 1;
        const nvlm::Engine engine(words[1], options);
        for (std::string text; std::getline(std::cin, text);) {
            try {
                std::cout << answer(engine, Json::parse(text)).dump() << std::endl;
            } catch (const nvlm::Failure& failure) {
                const Json told = {
                    {"status", failure.status()}, {"message", failure.what()}, {"hint", failure.hint()}};
                std::cout << told.dump() << std::endl;
            }
        }
    } catch (const nvlm::Failure& failure) {
        std::cerr << failure.what() << '\n' << failure.hint() << '\n';
        return failure.status();
    }
    return NVLM_OK;
}
