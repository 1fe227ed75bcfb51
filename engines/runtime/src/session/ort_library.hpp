// ONNX Runtime, opened at run time: its C API through `OrtGetApiBase`.

#pragma once

#include <memory>
#include <string>

#include <onnxruntime_c_api.h>

namespace nvlm {

template <class Handle>
using OrtPtr = std::unique_ptr<Handle, void (*)(Handle*)>;

class OrtLibrary {
  public:
    // Open the library at `path`, or that of NVLM_ONNXRUNTIME_LIBRARY, or the one that the system finds. It
    // stays open until the process ends. Throws Error (unsuitable): there is none, or it is too old.
    static const OrtLibrary& open(const std::string& path);

    const OrtApi& api() const noexcept { return *api_; }
    const OrtEnv* environment() const noexcept { return environment_; }
    const std::string& version() const noexcept { return version_; }

    // Throws Error (failure) with the library's own words, which follow `what`.
    void check(OrtStatus* status, const std::string& what) const;

  private:
    explicit OrtLibrary(const std::string& path);

    const OrtApi* api_ = nullptr;
    OrtEnv* environment_ = nullptr;
    std::string version_;
};

}  // namespace nvlm
