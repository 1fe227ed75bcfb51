// This machine, held against what a compiled engine was made for.

#pragma once

#include <map>
#include <string>

#include "bundle/bundle.hpp"

namespace nvlm {

// `sm`: compute capability of the GPU, 87 for 8.7. `cuda`: the newest that the driver runs. `versions`: of
// the libraries that this build uses, by their names in manifests.
struct GpuMachine {
    std::string architecture;
    int sm = 0;
    std::string cuda;
    std::map<std::string, std::string> versions;
};

// `x86_64`, `aarch64`: this machine's, in the names of targets.
std::string host_architecture();

// Throws Error (unsuitable) that names every field of the manifest that this machine contradicts. Libraries
// must agree in three numbers, and CUDA must not be of an older major version.
void check_machine(const Manifest& manifest, const GpuMachine& machine);

// Throws Error (unsuitable): it is an NVLM-X or NVLM-H, whose tiles no GPU engine is given here.
void refuse_cross_attention(const Bundle& bundle);

// How to build a libnvlm that opens engines of a backend.
std::string build_hint(const std::string& backend);

}  // namespace nvlm
