// An engine bundle on disk, held against itself: manifest, config and files.

#pragma once

#include <string>

#include "bundle/manifest.hpp"
#include "bundle/model_config.hpp"

namespace nvlm {

// What an opened graph says of itself. `inputs` and `outputs`: {"dtype": ..., "shape": [...]} by name.
// `context_length` is 0, and `record` null, where a graph says nothing of them.
struct GraphFacts {
    Json inputs;
    Json outputs;
    std::int64_t context_length = 0;
    Json record;
};

struct BundleOptions {
    bool verify_digests = true;
    bool require_verified = false;
};

struct Bundle {
    std::string directory;
    Manifest manifest;
    ModelConfig config;

    // Reads and checks everything but the graphs. Throws Error: failure for no bundle, verification for a
    // file that has changed or a field that another file contradicts.
    static Bundle open(const std::string& directory, const BundleOptions& options);

    // Throws Error (verification): a field of the manifest that an opened graph contradicts; `part` is
    // `vision`, `llm` or `llm.tiles`.
    void check_graph(const std::string& part, const GraphFacts& facts) const;
};

}  // namespace nvlm
