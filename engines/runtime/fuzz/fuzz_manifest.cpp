// libFuzzer: any bytes as the manifest.json and the config.json of a bundle are read or refused. A manifest
// that parses is tried again with a seal that fits, or nothing behind the seal would ever be reached.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <zlib.h>

#include "base/sha256.hpp"
#include "bundle/json.hpp"
#include "bundle/manifest.hpp"
#include "bundle/model_config.hpp"
#include "error.hpp"

namespace {

const std::string& folder() {
    static const std::string made = [] {
        std::string name = (std::filesystem::temp_directory_path() / "fuzz-bundle-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) std::abort();
        return name;
    }();
    return made;
}

void write(const char* name, const std::string& text) {
    std::ofstream(folder() + "/" + name, std::ios::binary) << text;
}

std::string base64(const std::vector<Bytef>& bytes) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        const std::size_t left = bytes.size() - i;
        const unsigned bits =
            bytes[i] << 16U | (left > 1 ? bytes[i + 1] << 8U : 0U) | (left > 2 ? bytes[i + 2] : 0U);
        text += letters[bits >> 18U];
        text += letters[bits >> 12U & 63U];
        text += left > 1 ? letters[bits >> 6U & 63U] : '=';
        text += left > 2 ? letters[bits & 63U] : '=';
    }
    return text;
}

// The text that Python's writer makes of a manifest: with its copy, and its digest in the place of zeros.
std::string sealed(nvlm::Json json) {
    json.erase("manifest_copy");
    json.erase("manifest_sha256");
    const std::string plain = json.dump(-1, ' ', false, nvlm::Json::error_handler_t::replace);
    std::vector<Bytef> packed(compressBound(plain.size()));
    uLongf size = packed.size();
    if (compress(packed.data(), &size, reinterpret_cast<const Bytef*>(plain.data()), plain.size()) != Z_OK) {
        std::abort();
    }
    packed.resize(size);
    const std::string zeros(64, '0');
    json["manifest_copy"] = base64(packed);
    json["manifest_sha256"] = zeros;
    std::string text = json.dump(2, ' ', false, nvlm::Json::error_handler_t::replace);
    const std::string digest = nvlm::sha256_of(text);
    return text.replace(text.rfind(zeros), zeros.size(), digest);
}

template <typename Attempt>
void refused_or(const Attempt& attempt) {
    try {
        attempt();
    } catch (const nvlm::Error&) {
        // Refused with a sentence: what malformed files are for.
    }
}

void open_bundle() {
    const nvlm::Manifest manifest = nvlm::Manifest::read(folder());
    refused_or([&] { manifest.verify_files(true); });
    refused_or([&] { manifest.require_passed(); });
    for (const char* part : {"vision", "llm"}) {
        refused_or([&] { static_cast<void>(manifest.model_path(part)); });
    }
    static_cast<void>(manifest.record());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    write("manifest.json", text);
    write("config.json", text);
    refused_or(open_bundle);
    refused_or([] { static_cast<void>(nvlm::ModelConfig::from_directory(folder())); });
    refused_or([&] {
        write("manifest.json", sealed(nvlm::parse_object(text, "fuzz")));
        open_bundle();
    });
    return 0;
}
