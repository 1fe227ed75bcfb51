#include "engine/request.hpp"

#include <cmath>

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace nvlm {

Image ImageInput::decode(const std::string& label) const {
    if (!path.empty()) return load_image(path);
    if (file.data != nullptr) {
        return decode_image(file, label + " (" + std::to_string(file.size) + " bytes)");
    }
    if (pixels != nullptr) return copy_pixels(pixels, width, height, stride, label);
    throw Error(Status::usage, label + " has no path, no file and no pixels", "give it one of these");
}

void Request::check() const {
    if (max_new_tokens < 1) {
        throw Error(Status::usage, "max_new_tokens is 0; it must be at least 1");
    }
    for (const std::string& text : stop) {
        if (text.empty()) throw Error(Status::usage, "stop must be a list of strings that are not empty");
    }
    nvlm::check(sampling);
}

std::string Result::to_json(int indent) const {
    using Json = nlohmann::ordered_json;
    Json reports = Json::array();
    for (const ImageReport& image : images) {
        reports.push_back(Json{{"tiles", image.crc32.size()},
                               {"grid", Json::array({image.grid.columns, image.grid.rows})},
                               {"crc32", image.crc32}});
    }
    Json times = Json::object();
    for (const auto& [stage, ms] : timings) times[stage] = std::round(ms * 1000) / 1000;
    Json top = Json::array();
    for (const auto& [id, logit] : first_token_top) {
        top.push_back(Json{{"id", id}, {"logit", static_cast<double>(logit)}});
    }
    const Json all = {{"text", text},
                      {"input_ids", input_ids},
                      {"output_ids", output_ids},
                      {"finish_reason", finish_reason == FinishReason::stop ? "stop" : "length"},
                      {"images", reports},
                      {"timings_ms", times},
                      {"first_token_top", top}};
    return all.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace nvlm
