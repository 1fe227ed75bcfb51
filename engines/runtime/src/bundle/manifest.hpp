// `manifest.json` of an engine bundle: what it was made of, what is in it, and what was measured.
//
// The same file, and the same checks, as nvlm_deploy.config.manifest in Python.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/json.hpp"

namespace nvlm {

struct FileEntry {
    std::string path;
    std::int64_t size;
    std::string sha256;
};

class Manifest {
  public:
    static constexpr std::int64_t format_version = 3;

    // Throws Error: failure for no bundle or another format; verification for a manifest that has changed
    // since it was written, which names every field.
    static Manifest read(const std::string& directory);

    const std::string& path() const noexcept { return path_; }
    const Json& json() const noexcept { return json_; }
    const std::string& variant() const noexcept { return variant_; }
    const std::string& backend() const noexcept { return backend_; }
    const std::string& prompt_mode() const noexcept { return prompt_mode_; }
    std::int64_t context() const noexcept { return context_; }
    const std::vector<FileEntry>& files() const noexcept { return files_; }

    // The section of a graph: `vision`, `llm` or `llm.tiles`.
    const Json& section(const std::string& part) const;
    // The path of a graph, within the bundle.
    std::string model_path(const std::string& part) const;
    // What was settled before the graphs were written; they carry it, too.
    Json record() const;
    // What to do about a bundle that does not fit.
    std::string rebuild_hint() const;

    // Hold the bundle's files against their sizes and, with `digests`, their SHA-256. Throws Error
    // (verification) that names the first that differs.
    void verify_files(bool digests) const;
    // Throws Error (verification): the bundle has not passed `nvlm-build verify` with the files it has.
    void require_passed() const;

  private:
    void read_fields();
    void read_files(const Json& list);

    std::string directory_;
    std::string path_;
    Json json_;
    std::string variant_;
    std::string backend_;
    std::string prompt_mode_;
    std::int64_t context_ = 0;
    std::vector<FileEntry> files_;
};

}  // namespace nvlm
