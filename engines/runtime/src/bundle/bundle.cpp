#include "bundle/bundle.hpp"

#include "bundle/mismatch.hpp"

namespace nvlm {

namespace {

const char* const config_witness = "config.json gives";

void append(Mismatches& to, Mismatches more) {
    to.insert(to.end(), more.begin(), more.end());
}

// Fields that config.json contradicts; graphs may leave some of theirs out.
Mismatches config_mismatches(const Manifest& manifest, const ModelConfig& config) {
    const Json& json = manifest.json();
    Mismatches found = expect(json, {{"variant", std::string(1, config.variant)}}, config_witness, "");
    append(found, expect(json.at("tiler"),
                         {{"tile_size", config.tile_size},
                          {"min_tiles", config.min_tiles},
                          {"max_tiles", config.max_tiles},
                          {"use_thumbnail", true},
                          {"visual_tokens_per_tile", config.visual_tokens_per_tile}},
                         config_witness, "tiler."));
    append(found,
           expect(json.at("prompt"), {{"thumbnail_tag", config.thumbnail_tag}}, config_witness, "prompt."));
    append(found, expect(json.at("vision"),
                         {{"tile_size", config.tile_size},
                          {"visual_tokens_per_tile", config.visual_tokens_per_tile},
                          {"hidden_size", config.hidden_size}},
                         config_witness, "vision.", true));
    append(found,
           expect(json.at("llm"), {{"hidden_size", config.hidden_size}, {"vocab_size", config.vocab_size}},
                  config_witness, "llm.", true));
    append(found,
           expect(json.at("llm"), {{"context_length", manifest.context()}}, "context is", "llm.", true));
    if (json.at("target").contains("backend")) {
        append(found, expect(json, {{"backend", json.at("target").at("backend")}}, "target.backend is", ""));
    }
    const Json& llm = json.at("llm");
    if (llm.contains("tiles") != (config.variant != 'D')) {
        const Json layers = config.variant == 'D' ? Json() : Json(config.cross_layers);
        found.push_back({"llm.tiles", llm.contains("tiles") ? llm.at("tiles").dump() : "nothing",
                         "config.json gives cross-attention in the layers", layers.dump()});
    }
    if (manifest.context() > config.max_positions) {
        found.push_back({"context", std::to_string(manifest.context()), "config.json allows no more than",
                         std::to_string(config.max_positions)});
    }
    return found;
}

// Models and their data that are no files of the bundle.
Mismatches file_mismatches(const Manifest& manifest) {
    Mismatches found;
    for (const char* part : {"vision", "llm", "llm.tiles"}) {
        if (std::string(part) == "llm.tiles" && !manifest.json().at("llm").contains("tiles")) continue;
        for (const char* key : {"model", "data"}) {
            const Json& section = manifest.section(part);
            if (!section.contains(key)) continue;
            bool there = false;
            for (const FileEntry& entry : manifest.files())
                there = there || section.at(key) == Json(entry.path);
            if (!there) {
                found.push_back({std::string(part) + "." + key, section.at(key).dump(),
                                 "the bundle's files are", "others"});
            }
        }
    }
    return found;
}

bool starts_with(const std::string& text, const std::string& start) {
    return text.rfind(start, 0) == 0;
}

// Inputs or outputs without those of the cache, which the manifest describes once for all layers.
Json without_cache(const Json& values, const char* first, const char* second) {
    Json rest = Json::object();
    for (const auto& [name, value] : values.items()) {
        if (!starts_with(name, first) && !starts_with(name, second)) rest[name] = value;
    }
    return rest;
}

// What a section should say of a graph's inputs and outputs, in the section's own form.
Json described(const Json& section, const GraphFacts& facts) {
    if (!section.contains("kv_cache")) return {{"inputs", facts.inputs}, {"outputs", facts.outputs}};
    std::int64_t layers = 0;
    while (facts.inputs.contains("past_key." + std::to_string(layers))) ++layers;
    Json cache = {{"past", {"past_key.{layer}", "past_value.{layer}"}},
                  {"present", {"present_key.{layer}", "present_value.{layer}"}},
                  {"layers", layers},
                  {"in_place", true}};
    if (layers > 0) cache.update(facts.inputs.at("past_key.0"));
    return {{"inputs", without_cache(facts.inputs, "past_key.", "past_value.")},
            {"outputs", without_cache(facts.outputs, "present_key.", "present_value.")},
            {"kv_cache", cache}};
}

}  // namespace

Bundle Bundle::open(const std::string& directory, const BundleOptions& options) {
    Manifest manifest = Manifest::read(directory);
    manifest.verify_files(options.verify_digests);
    const ModelConfig config = ModelConfig::from_directory(directory);
    try {
        Mismatches found = config_mismatches(manifest, config);
        append(found, file_mismatches(manifest));
        refuse(found, manifest.path(), manifest.rebuild_hint());
        if (options.require_verified) manifest.require_passed();
    } catch (const Json::exception& error) {
        // A section without what every section has.
        throw Error(Status::failure, manifest.path() + ": " + error.what(), manifest.rebuild_hint());
    }
    return {directory, std::move(manifest), config};
}

void Bundle::check_graph(const std::string& part, const GraphFacts& facts) const {
    const Json& section = manifest.section(part);
    const std::string model = section.at("model").get<std::string>();
    Mismatches found = expect(section, described(section, facts), model + " has", part + ".");
    if (facts.context_length != 0) {
        append(found, expect(manifest.json(), {{"context", facts.context_length}}, model + " has", ""));
    }
    if (!facts.record.is_null()) {
        append(found, differences(manifest.record(), facts.record, model + " was made with"));
    }
    refuse(found, manifest.path(), manifest.rebuild_hint());
}

}  // namespace nvlm
