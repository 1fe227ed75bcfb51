// JSON files, read with errors that name file and key.

#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <nlohmann/json.hpp>

namespace nvlm {

using Json = nlohmann::ordered_json;

// Throws Error (failure): the text is no JSON, nested too deeply, or no object; `source` is its file.
Json parse_object(const std::string& text, const std::string& source);

// Fields of one object; errors name them as `source: section.key`.
class Fields {
  public:
    Fields(const Json& object, std::string source, std::string prefix = {});

    bool has(const std::string& key) const { return object_.contains(key); }
    // Each throws Error (failure): the key is missing, or its value has another type or is out of range.
    const Json& at(const std::string& key) const;
    std::string text(const std::string& key) const;
    bool flag(const std::string& key) const;
    std::int64_t integer(const std::string& key, std::int64_t minimum = 1,
                         std::int64_t maximum = std::numeric_limits<std::int32_t>::max()) const;
    const Json& list(const std::string& key) const;
    Fields section(const std::string& key) const;
    const Json& object(const std::string& key) const;
    [[noreturn]] void fail(const std::string& key, const std::string& must) const;

  private:
    std::string named(const std::string& key) const;

    const Json& object_;
    std::string source_;
    std::string prefix_;
};

}  // namespace nvlm
