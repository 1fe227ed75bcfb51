#include "session/trt_machine.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "bundle/mismatch.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

const char* const here = "this machine has";
const char* const nothing = "nothing";

// The first numbers of a version: 10, 14, 1 of `10.14.1.48.post1`.
std::vector<long> release(const std::string& version, std::size_t parts) {
    std::vector<long> numbers;
    const std::string plain = version.substr(0, version.find('+'));
    for (std::size_t start = 0; start <= plain.size() && numbers.size() < parts;) {
        const std::size_t end = std::min(plain.find('.', start), plain.size());
        bool digits = end > start && end - start < 10;
        for (std::size_t i = start; i < end; ++i) {
            digits = digits && std::isdigit(static_cast<unsigned char>(plain[i])) != 0;
        }
        if (digits) numbers.push_back(std::stol(plain.substr(start, end - start)));
        start = end + 1;
    }
    return numbers;
}

std::string quoted(const std::string& text) {
    return Json(text).dump();
}

Mismatches machine_mismatches(const Manifest& manifest, const GpuMachine& machine) {
    const Json& json = manifest.json();
    const Json& target = json.at("target");
    const Json& tools = json.at("tool_versions");
    const Json built_for = {{"architecture", target.value("architecture", Json())},
                            {"sm", target.value("sm", Json())}};
    Mismatches found =
        expect(built_for, {{"architecture", machine.architecture}, {"sm", machine.sm}}, here, "target.");
    for (const auto& [name, mine] : machine.versions) {
        if (!tools.contains(name) || !tools.at(name).is_string()) continue;
        const std::string theirs = tools.at(name).get<std::string>();
        if (release(mine, 3) != release(theirs, 3)) {
            found.push_back({"tool_versions." + name, quoted(theirs), "this libnvlm has", quoted(mine)});
        }
    }
    if (tools.contains("cuda") && tools.at("cuda").is_string()) {
        const std::string theirs = tools.at("cuda").get<std::string>();
        if (machine.cuda.empty() || release(machine.cuda, 1) < release(theirs, 1)) {
            found.push_back({"tool_versions.cuda", quoted(theirs), "this machine's driver runs",
                             machine.cuda.empty() ? nothing : quoted(machine.cuda)});
        }
    }
    return found;
}

}  // namespace

std::string host_architecture() {
    struct utsname name {};
    if (uname(&name) != 0) return nothing;
    const std::string machine = name.machine;
    if (machine == "amd64") return "x86_64";
    return machine == "arm64" ? "aarch64" : machine;
}

void check_machine(const Manifest& manifest, const GpuMachine& machine) {
    refuse(machine_mismatches(manifest, machine), manifest.path(), manifest.rebuild_hint(),
           Status::unsuitable);
}

void refuse_cross_attention(const Bundle& bundle) {
    if (bundle.config.variant == 'D') return;
    throw Error(Status::unsuitable,
                bundle.directory + " is an NVLM-" + bundle.config.variant + ", and engines of " +
                    bundle.manifest.backend() + " are given no tiles by the native runtime: it runs NVLM-D",
                "build an engine of onnxruntime: --set backend=onnxruntime");
}

std::string build_hint(const std::string& backend) {
    const std::string start = "build libnvlm with ";
    const std::string end = " (docs/embedding.md), or build an engine for another target";
    if (backend == "onnxruntime") return start + "-DNVLM_ONNXRUNTIME_INCLUDE_DIR=DIR" + end;
    if (backend == "tensorrt") return start + "-DNVLM_TENSORRT_DIR=DIR" + end;
    if (backend == "tensorrt_llm") {
        return start + "-DNVLM_TENSORRT_DIR=DIR -DNVLM_TENSORRT_LLM_DIR=DIR" + end;
    }
    return "open it in Python: nvlm_deploy.Engine.open, or build an engine for another target";
}

}  // namespace nvlm
