// Answers requests about text and sampling: a JSON object on each line of stdin, one on each line of stdout.
//
//   {"load": PATH}                                              reads a tokenizer.json; {"size", "seconds"}
//   {"encode": TEXT or list of bytes}, {"encode_text": ...}     {"ids"}
//   {"decode": IDS, "skip_special": true}                       {"text"}
//   {"stream": IDS, "skip_special": true}                       {"pieces", "rest"}
//   {"words": TEXT}, {"nfc": TEXT}                              {"ends"} in bytes; {"text"}
//   {"prompt": TEXT or messages, "tiles": [...], "settings": {...}}
//   {"images": messages, "passed": 0}                           {"images"}: a file name, or a number
//   {"sample": {parameters}, "logits": PATH, "vocabulary": N}   {"ids"}: one for each row of the file
//   {"exp": LIST}                                               {"values"}
//   {"time": PATH}                                              {"ids", "seconds"} of encoding that file
// An error is {"status", "message", "hint"}.

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "sampling/exact_exp.hpp"
#include "sampling/sampler.hpp"
#include "text/prompt.hpp"
#include "text/stream.hpp"
#include "text/tokenizer.hpp"
#include "text/unicode.hpp"
#include "text/words.hpp"

namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int64_t>;
using Clock = std::chrono::steady_clock;

std::optional<nvlm::Tokenizer> loaded;

const nvlm::Tokenizer& tokenizer() {
    if (!loaded) throw nvlm::Error(nvlm::Status::usage, "no tokenizer is loaded");
    return *loaded;
}

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Bytes allow for text that JSON cannot hold.
std::string text_of(const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    const auto bytes = value.get<std::vector<unsigned char>>();
    return {bytes.begin(), bytes.end()};
}

Json load(const Json& request) {
    const auto start = Clock::now();
    loaded.reset();
    loaded = nvlm::Tokenizer::from_file(request.at("load").get<std::string>());
    return {{"size", loaded->size()}, {"seconds", seconds_since(start)}};
}

Json stream(const Json& request) {
    nvlm::TextStream text(tokenizer(), request.value("skip_special", true));
    Json pieces = Json::array();
    for (const std::int64_t id : request.at("stream").get<Ids>()) pieces.push_back(text.push(id));
    return {{"pieces", pieces}, {"rest", text.flush()}};
}

Json words(const std::string& text) {
    Json ends = Json::array();
    for (std::size_t start = 0; start < text.size();) ends.push_back(start = nvlm::word_end(text, start));
    return {{"ends", ends}};
}

nvlm::PromptSettings settings_of(const Json& request) {
    const Json& given = request.at("settings");
    nvlm::PromptSettings settings;
    const auto variant = given.at("variant").get<std::string>();
    settings.variant = variant == "D"   ? nvlm::Variant::d
                       : variant == "X" ? nvlm::Variant::x
                                        : nvlm::Variant::h;
    settings.mode = nvlm::tokenization_mode(given.at("mode").get<std::string>());
    settings.visual_tokens_per_tile = given.at("visual_tokens_per_tile").get<std::int64_t>();
    settings.vocab_size = given.at("vocab_size").get<std::int64_t>();
    settings.thumbnail_tag = given.at("thumbnail_tag").get<std::string>();
    return settings;
}

Json prompt(const Json& request) {
    const nvlm::PromptBuilder builder(tokenizer(), settings_of(request));
    const Json& content = request.at("prompt");
    const Ids tiles = request.at("tiles").get<Ids>();
    const nvlm::Prompt built = content.is_string()
                                   ? builder.build(content.get<std::string>(), tiles)
                                   : builder.build(nvlm::parse_messages(content.dump()), tiles);
    Json result = {
        {"input_ids", built.input_ids}, {"visual_positions", built.visual_positions}, {"text", built.text}};
    if (built.cross) {
        result["cross"] = {{"tiles", built.cross->tiles},
                           {"sequence_tiles", built.cross->sequence_tiles},
                           {"tags", built.cross->tags},
                           {"visible", built.cross->visible}};
    }
    return result;
}

Json images(const Json& request) {
    const auto turns = nvlm::parse_messages(request.at("images").dump());
    Json result = Json::array();
    for (const nvlm::ImageSource& source :
         nvlm::gather_images(turns, request.value("passed", std::size_t{0}))) {
        std::visit([&result](const auto& value) { result.push_back(value); }, source);
    }
    return {{"images", result}};
}

Json sample(const Json& request) {
    const Json& given = request.at("sample");
    nvlm::SamplingParameters parameters;
    parameters.temperature = given.value("temperature", parameters.temperature);
    parameters.top_k = given.value("top_k", parameters.top_k);
    parameters.top_p = given.value("top_p", parameters.top_p);
    parameters.seed = given.value("seed", parameters.seed);
    nvlm::Sampler sampler(parameters);
    const std::string bytes = read_file(request.at("logits").get<std::string>());
    std::vector<float> logits(bytes.size() / sizeof(float));
    bytes.copy(reinterpret_cast<char*>(logits.data()), bytes.size());
    const auto vocabulary = request.at("vocabulary").get<std::size_t>();
    Ids ids;
    const auto start = Clock::now();
    for (std::size_t row = 0; row < logits.size(); row += vocabulary) {
        ids.push_back(sampler.choose(logits.data() + row, vocabulary));
    }
    return {{"ids", ids}, {"seconds", seconds_since(start)}};
}

Json time_encoding(const Json& request) {
    const std::string text = read_file(request.at("time").get<std::string>());
    const auto start = Clock::now();
    const std::size_t count = tokenizer().encode(text).size();
    return {{"ids", count}, {"seconds", seconds_since(start)}};
}

Json exponentials(const Json& request) {
    Json values = Json::array();
    for (const Json& x : request.at("exp")) values.push_back(nvlm::exact_exp(x.get<double>()));
    return {{"values", values}};
}

Json answer(const Json& request) {
    if (request.contains("load")) return load(request);
    if (request.contains("encode")) return {{"ids", tokenizer().encode(text_of(request["encode"]))}};
    if (request.contains("encode_text")) {
        return {{"ids", tokenizer().encode_text(text_of(request["encode_text"]))}};
    }
    if (request.contains("decode")) {
        const bool skip = request.value("skip_special", true);
        return {{"text", tokenizer().decode(request["decode"].get<Ids>(), skip)}};
    }
    if (request.contains("stream")) return stream(request);
    if (request.contains("words")) return words(text_of(request["words"]));
    if (request.contains("nfc")) return {{"text", nvlm::nfc(text_of(request["nfc"]))}};
    if (request.contains("prompt")) return prompt(request);
    if (request.contains("images")) return images(request);
    if (request.contains("sample")) return sample(request);
    if (request.contains("exp")) return exponentials(request);
    return time_encoding(request);
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    for (std::string line; std::getline(std::cin, line);) {
        Json result;
        try {
            result = answer(Json::parse(line));
        } catch (const nvlm::Error& error) {
            const auto status = static_cast<int>(error.status());
            result = {{"status", status}, {"message", error.what()}, {"hint", error.hint()}};
        }
        std::cout << result << std::endl;
    }
}
