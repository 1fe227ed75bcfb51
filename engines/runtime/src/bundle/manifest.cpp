#include "bundle/manifest.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "base/file.hpp"
#include "base/sha256.hpp"
#include "base/words.hpp"
#include "bundle/manifest_seal.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

const char* const known_keys[] = {
    "format_version", "project_version", "variant", "backend", "recipe", "target", "checkpoint_fingerprint",
    "quantization",   "tool_versions",   "context", "tiler",   "prompt", "vision", "llm",
    "sizes",          "files",           "results"};

// Every other field stands in the graphs, too: these describe them, or come after them.
const char* const settled_later[] = {"format_version", "vision", "llm", "files", "results"};

std::string name_in(const Json& manifest, const char* section) {
    const auto found = manifest.find(section);
    if (found != manifest.end() && found->is_object() && found->contains("name") &&
        found->at("name").is_string()) {
        return found->at("name").get<std::string>();
    }
    return "NAME";
}

std::string rebuild(const Json& manifest) {
    return "rebuild it: nvlm-build engine CHECKPOINT --recipe " + name_in(manifest, "recipe") + " --target " +
           name_in(manifest, "target") + " -o BUNDLE";
}

std::string read_manifest(const std::string& directory, const std::string& path) {
    try {
        const std::vector<std::uint8_t> bytes = read_file(path);
        return {bytes.begin(), bytes.end()};
    } catch (const FileError& error) {
        if (error.code() == ENOENT || error.code() == ENOTDIR) {
            throw Error(Status::failure, directory + " is no engine bundle: it has no manifest.json",
                        "build one: nvlm-build engine CHECKPOINT --recipe NAME --target NAME -o BUNDLE");
        }
        throw Error(Status::failure, error.what());
    }
}

void check_version(const Json& json, const std::string& path) {
    const auto version = json.find("format_version");
    if (version == json.end() || !version->is_number_integer() || *version != Manifest::format_version) {
        throw Error(Status::failure,
                    path + ": format_version is " + (version == json.end() ? "missing" : version->dump()) +
                        ", and this libnvlm reads " + std::to_string(Manifest::format_version),
                    rebuild(json));
    }
}

// Paths stay within the bundle.
bool leaves_bundle(const std::string& path) {
    if (path.empty() || path.front() == '/') return true;
    std::size_t start = 0;
    while (start <= path.size()) {
        const std::size_t end = std::min(path.find('/', start), path.size());
        if (path.compare(start, end - start, "..") == 0) return true;
        start = end + 1;
    }
    return path.find('\0') != std::string::npos;
}

// Empty, or what is wrong with a file: the field of its entry, and a sentence.
std::string difference(const std::string& path, const FileEntry& entry, bool digests, std::string& field) {
    struct stat facts {};
    field = "path";
    if (::stat(path.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode)) return "is missing from the bundle";
    field = "size";
    if (facts.st_size != entry.size) {
        return "has changed since it was built: " + grouped(facts.st_size) + " bytes, the manifest says " +
               grouped(entry.size);
    }
    field = "sha256";
    const std::string digest = digests ? sha256_of_file(path) : entry.sha256;
    if (digest == entry.sha256) return {};
    return "has changed since it was built: its SHA-256 is " + digest + ", the manifest says " + entry.sha256;
}

}  // namespace

Manifest Manifest::read(const std::string& directory) {
    Manifest manifest;
    manifest.directory_ = directory;
    manifest.path_ = directory + "/manifest.json";
    const std::string text = read_manifest(directory, manifest.path_);
    try {
        manifest.json_ = parse_object(text, manifest.path_);
    } catch (const Error& error) {
        throw Error(Status::verification, std::string(error.what()) + ": it has changed since it was written",
                    rebuild(Json::object()));
    }
    check_version(manifest.json_, manifest.path_);
    open_seals(manifest.json_, text, manifest.path_, rebuild(manifest.json_));
    try {
        manifest.read_fields();
    } catch (const Error& error) {
        throw Error(error.status(), error.what(), rebuild(manifest.json_));
    }
    return manifest;
}

void Manifest::read_fields() {
    for (const auto& [key, value] : json_.items()) {
        if (std::find(std::begin(known_keys), std::end(known_keys), key) == std::end(known_keys)) {
            throw Error(Status::failure, path_ + ": the key '" + key + "' is not known");
        }
    }
    const Fields top(json_, path_);
    for (const char* section : {"recipe", "target", "tool_versions", "tiler", "results"}) top.object(section);
    variant_ = top.text("variant");
    backend_ = top.text("backend");
    context_ = top.integer("context");
    prompt_mode_ = top.section("prompt").text("mode");
    top.section("vision").text("model");
    const Fields llm = top.section("llm");
    // TensorRT-LLM's engines are folders.
    llm.text(backend_ == "tensorrt_llm" ? "engine" : "model");
    if (llm.has("tiles")) llm.section("tiles").text("model");
    read_files(top.list("files"));
}

void Manifest::read_files(const Json& list) {
    for (std::size_t i = 0; i < list.size(); ++i) {
        const std::string where = "files." + std::to_string(i);
        if (!list[i].is_object()) throw Error(Status::failure, path_ + ": " + where + " must be an object");
        const Fields fields(list[i], path_, where);
        FileEntry entry{fields.text("path"),
                        fields.integer("size", 0, std::numeric_limits<std::int64_t>::max()),
                        fields.text("sha256")};
        if (leaves_bundle(entry.path)) {
            throw Error(Status::failure, path_ + ": the file '" + entry.path + "' lies outside the bundle");
        }
        files_.push_back(std::move(entry));
    }
}

const Json& Manifest::section(const std::string& part) const {
    const std::size_t dot = part.find('.');
    const Json& outer = json_.at(part.substr(0, dot));
    return dot == std::string::npos ? outer : outer.at(part.substr(dot + 1));
}

std::string Manifest::model_path(const std::string& part) const {
    return directory_ + "/" + section(part).at("model").get<std::string>();
}

Json Manifest::record() const {
    Json fields = json_;
    for (const char* key : settled_later) fields.erase(key);
    return fields;
}

std::string Manifest::rebuild_hint() const {
    return rebuild(json_);
}

void Manifest::verify_files(bool digests) const {
    for (std::size_t i = 0; i < files_.size(); ++i) {
        const std::string path = directory_ + "/" + files_[i].path;
        std::string field;
        const std::string problem = difference(path, files_[i], digests, field);
        if (!problem.empty()) {
            throw Error(Status::verification,
                        path + " " + problem + " (files." + std::to_string(i) + "." + field + ")",
                        rebuild_hint());
        }
    }
}

void Manifest::require_passed() const {
    const std::string hint = "nvlm-build verify " + directory_ + " --against CHECKPOINT";
    const auto result = json_.at("results").find("verify");
    if (result == json_.at("results").end() || !result->is_object()) {
        throw Error(Status::verification, directory_ + " has not been verified", hint);
    }
    std::vector<std::string> lines;
    for (const FileEntry& entry : files_) {
        std::string line = entry.sha256;
        lines.push_back(line.append(" ").append(entry.path).append("\n"));
    }
    std::sort(lines.begin(), lines.end());
    std::string all;
    for (const std::string& line : lines) all += line;
    if (result->value("files_sha256", Json()) != Json(sha256_of(all))) {
        throw Error(Status::verification, directory_ + " was verified with other files than it has now",
                    hint);
    }
    if (result->value("passed", Json()) != Json(true)) {
        const Json failed = result->value("failed", Json::array());
        throw Error(Status::verification, directory_ + " has not passed verification: " + failed.dump(),
                    hint);
    }
}

}  // namespace nvlm
