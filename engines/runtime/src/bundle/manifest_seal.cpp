#include "bundle/manifest_seal.hpp"

#include <cstdint>
#include <vector>

#include <zlib.h>

#include "base/sha256.hpp"
#include "bundle/mismatch.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

const char* const copy_key = "manifest_copy";
const char* const digest_key = "manifest_sha256";
constexpr std::size_t digest_length = 64;
// A manifest has some ten thousand bytes; more than this is no manifest.
constexpr std::size_t max_manifest_bytes = std::size_t{64} << 20U;

int base64_value(char letter) {
    if (letter >= 'A' && letter <= 'Z') return letter - 'A';
    if (letter >= 'a' && letter <= 'z') return letter - 'a' + 26;
    if (letter >= '0' && letter <= '9') return letter - '0' + 52;
    return letter == '+' ? 62 : letter == '/' ? 63 : -1;
}

// False: the text is no Base64.
bool decode_base64(const std::string& text, std::vector<std::uint8_t>& bytes) {
    std::size_t end = text.size();
    while (end > 0 && text.size() - end < 2 && text[end - 1] == '=') --end;
    if (text.size() % 4 != 0) return false;
    std::uint32_t bits = 0;
    int count = 0;
    for (std::size_t i = 0; i < end; ++i) {
        const int value = base64_value(text[i]);
        if (value < 0) return false;
        bits = (bits << 6U | static_cast<std::uint32_t>(value)) & 0xffffffU;
        count += 6;
        if (count >= 8) {
            count -= 8;
            bytes.push_back(static_cast<std::uint8_t>(bits >> static_cast<unsigned>(count)));
        }
    }
    return true;
}

// False: the bytes are no zlib stream, or hold too much.
bool inflate_text(const std::vector<std::uint8_t>& packed, std::string& text) {
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) return false;
    stream.next_in = const_cast<Bytef*>(packed.data());
    stream.avail_in = static_cast<uInt>(packed.size());
    std::vector<char> chunk(std::size_t{1} << 16U);
    int result = Z_OK;
    while (result == Z_OK && text.size() < max_manifest_bytes) {
        stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
        stream.avail_out = static_cast<uInt>(chunk.size());
        result = inflate(&stream, Z_NO_FLUSH);
        text.append(chunk.data(), chunk.size() - stream.avail_out);
    }
    inflateEnd(&stream);
    return result == Z_STREAM_END;
}

Mismatches changed_fields(const Json& json, const Json& copy) {
    const std::string path = "the manifest's copy of itself";
    std::vector<std::uint8_t> packed;
    std::string written;
    if (copy.is_string() && decode_base64(copy.get<std::string>(), packed) && inflate_text(packed, written)) {
        try {
            return differences(json, parse_object(written, path), "it was written as");
        } catch (const Error&) {
            // Not JSON: told below, as for any other damage of the copy.
        }
    }
    return {{copy_key, copy.dump(-1, ' ', false, Json::error_handler_t::replace), "it was written as",
             "\"the manifest once more\""}};
}

Json take(Json& json, const char* key) {
    if (!json.contains(key)) return nullptr;
    Json value = json[key];
    json.erase(key);
    return value;
}

std::string without_digest(std::string text, const std::string& digest) {
    for (std::size_t at = text.find(digest); at != std::string::npos;
         at = text.find(digest, at + digest_length)) {
        text.replace(at, digest_length, digest_length, '0');
    }
    return text;
}

}  // namespace

void open_seals(Json& json, const std::string& text, const std::string& path, const std::string& hint) {
    const Json digest = take(json, digest_key);
    const Json copy = take(json, copy_key);
    refuse(changed_fields(json, copy), path, hint);
    const std::string expected = digest.is_string() ? digest.get<std::string>() : "";
    if (expected.size() != digest_length || sha256_of(without_digest(text, expected)) != expected) {
        throw Error(Status::verification,
                    path + " has changed since it was written: " + digest_key + " is " +
                        digest.dump(-1, ' ', false, Json::error_handler_t::replace) + ", and does not hold",
                    hint);
    }
}

}  // namespace nvlm
