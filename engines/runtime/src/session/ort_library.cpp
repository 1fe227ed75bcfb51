#include "session/ort_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "error.hpp"

namespace nvlm {

namespace {

const char* const path_variable = "NVLM_ONNXRUNTIME_LIBRARY";

void* open_first(const std::vector<std::string>& names, std::string& name, std::string& reason) {
    for (const std::string& each : names) {
        // Local: another copy in this process keeps its own symbols.
        if (void* handle = dlopen(each.c_str(), RTLD_NOW | RTLD_LOCAL)) {
            name = each;
            return handle;
        }
        const char* text = dlerror();
        if (reason.empty() && text != nullptr) reason = text;
    }
    return nullptr;
}

std::vector<std::string> names_to_try(const std::string& path) {
    if (!path.empty()) return {path};
    const char* variable = std::getenv(path_variable);
    if (variable != nullptr && *variable != '\0') return {variable};
    return {"libonnxruntime.so.1", "libonnxruntime.so"};
}

}  // namespace

const OrtLibrary& OrtLibrary::open(const std::string& path) {
    // Never freed: threads of the library may outlive the last engine.
    static auto* const mutex = new std::mutex;
    static auto* const opened = new std::map<std::string, const OrtLibrary*>;
    const std::lock_guard<std::mutex> lock(*mutex);
    const std::string key = names_to_try(path).front();
    const auto found = opened->find(key);
    if (found != opened->end()) return *found->second;
    return *opened->emplace(key, new OrtLibrary(path)).first->second;
}

OrtLibrary::OrtLibrary(const std::string& path) {
    std::string name, reason;
    void* const handle = open_first(names_to_try(path), name, reason);
    if (handle == nullptr) {
        throw Error(
            Status::unsuitable, "ONNX Runtime cannot be opened: " + reason,
            std::string("set ") + path_variable +
                " to a libonnxruntime.so: in Python's package it is onnxruntime/capi/libonnxruntime.so.*");
    }
    using GetApiBase = const OrtApiBase* (*)();
    const auto get_base = reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
    if (get_base == nullptr) throw Error(Status::unsuitable, name + " is no ONNX Runtime: no OrtGetApiBase");
    version_ = get_base()->GetVersionString();
    api_ = get_base()->GetApi(ORT_API_VERSION);
    if (api_ == nullptr) {
        throw Error(Status::unsuitable,
                    name + " is ONNX Runtime " + version_ + ", and this libnvlm needs 1." +
                        std::to_string(ORT_API_VERSION) + " or newer",
                    "pip install --upgrade onnxruntime, or name another library");
    }
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "nvlm", &environment_), "ONNX Runtime does not start");
}

void OrtLibrary::check(OrtStatus* status, const std::string& what) const {
    if (status == nullptr) return;
    const std::string text = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw Error(Status::failure, what + ": " + text.substr(0, text.find('\n')));
}

}  // namespace nvlm
