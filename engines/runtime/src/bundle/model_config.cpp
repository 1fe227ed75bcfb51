#include "bundle/model_config.hpp"

#include "base/file.hpp"
#include "bundle/json.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

// Far above every released model's, and small enough for every product of them.
constexpr std::int64_t max_tile_size = 4096;
constexpr std::int64_t tile_limit = 256;

std::string first_architecture(const Fields& fields) {
    const Json& names = fields.list("architectures");
    if (names.empty() || !names.front().is_string()) fields.fail("architectures", "a list of one name");
    return names.front().get<std::string>();
}

char variant_of(const Fields& fields) {
    const std::string name = first_architecture(fields);
    if (name == "NVLM_D" || name == "NVLM_D_Model") return 'D';
    if (name == "NVLM_X") return 'X';
    if (name == "NVLM_H") return 'H';
    fields.fail("architectures", "NVLM_D, NVLM_X or NVLM_H");
}

// Every tag has the same number of tokens: the thumbnail's depends on the vocabulary.
std::string tag_of_thumbnails(const Fields& language) {
    const std::string name = first_architecture(language);
    if (name == "Qwen2ForCausalLM") return "<tile_global_thumbnail>";
    if (name == "LlamaForCausalLM") return "<tile_global>";
    language.fail("architectures", "Qwen2ForCausalLM or LlamaForCausalLM");
}

void expect_released(const Fields& top) {
    if (top.text("template") != "chatml") top.fail("template", "chatml");
    if (!top.flag("dynamic_image_size")) top.fail("dynamic_image_size", "true");
    if (!top.flag("use_thumbnail")) top.fail("use_thumbnail", "true");
    if (top.at("downsample_ratio") != 0.5) top.fail("downsample_ratio", "0.5");
}

std::vector<std::int64_t> layers_of(const Fields& cross, std::int64_t decoder_layers) {
    std::vector<std::int64_t> layers;
    for (const Json& layer : cross.list("layers")) {
        const bool fits = layer.is_number_integer() && layer.get<std::int64_t>() < decoder_layers &&
                          layer.get<std::int64_t>() > (layers.empty() ? -1 : layers.back());
        if (!fits) {
            layers.clear();
            break;
        }
        layers.push_back(layer.get<std::int64_t>());
    }
    if (layers.empty()) {
        cross.fail("layers",
                   "ascending numbers of decoder layers, 0 to " + std::to_string(decoder_layers - 1));
    }
    return layers;
}

std::string read_text(const std::string& path) {
    try {
        const std::vector<std::uint8_t> bytes = read_file(path);
        return {bytes.begin(), bytes.end()};
    } catch (const FileError& error) {
        throw Error(Status::failure, std::string(error.what()), "the bundle is not complete: build it again");
    }
}

}  // namespace

ModelConfig ModelConfig::from_directory(const std::string& directory) {
    const std::string path = directory + "/config.json";
    const Json raw = parse_object(read_text(path), path);
    const Fields top(raw, path);
    expect_released(top);
    const Fields vision = top.section("vision_config");
    const Fields language = top.section("llm_config");

    ModelConfig config;
    config.variant = variant_of(top);
    config.tile_size = top.integer("force_image_size", 2, max_tile_size);
    if (config.tile_size != vision.integer("image_size"))
        top.fail("force_image_size", "vision_config.image_size");
    const std::int64_t patch_size = vision.integer("patch_size");
    if (config.tile_size % (2 * patch_size) != 0) {
        vision.fail("image_size", "a multiple of " + std::to_string(2 * patch_size));
    }
    const std::int64_t side = config.tile_size / patch_size / 2;
    config.visual_tokens_per_tile = side * side;
    config.min_tiles = top.integer("min_dynamic_patch", 1, tile_limit);
    config.max_tiles = top.integer("max_dynamic_patch", config.min_tiles, tile_limit);
    config.hidden_size = language.integer("hidden_size");
    config.vocab_size = language.integer("vocab_size");
    config.max_positions = language.integer("max_position_embeddings");
    if (config.variant != 'D') {
        config.cross_layers =
            layers_of(top.section("cross_attention_config"), language.integer("num_hidden_layers"));
    } else if (top.has("cross_attention_config")) {
        top.fail("cross_attention_config", "left out in an NVLM-D; NVLM_X or NVLM_H have one");
    }
    config.thumbnail_tag = tag_of_thumbnails(language);
    return config;
}

}  // namespace nvlm
