// A graph opened with ONNX Runtime.

#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <vector>

#include "session/ort_library.hpp"
#include "session/session.hpp"

namespace nvlm {

// An input or output; free dimensions of `shape` are -1.
struct OrtPort {
    std::string name;
    ONNXTensorElementDataType type;
    std::vector<std::int64_t> shape;
};

// Bytes of one number; throws Error (failure) for types that no graph of ours has.
std::size_t element_bytes(ONNXTensorElementDataType type);

// Elements of the axes from `first` on. Throws Error (failure): one of them is free, or they are more than
// any model has.
std::size_t elements(const OrtPort& port, std::size_t first);

class OrtGraph {
  public:
    // Throws Error (failure): the file is missing or damaged; names it.
    OrtGraph(const OrtLibrary& library, const std::string& path, const SessionOptions& options);

    const OrtLibrary& library() const noexcept { return library_; }
    OrtSession* session() const noexcept { return session_.get(); }
    const GraphFacts& facts() const noexcept { return facts_; }
    const std::vector<OrtPort>& inputs() const noexcept { return inputs_; }
    const std::vector<OrtPort>& outputs() const noexcept { return outputs_; }
    // Throws Error (failure): there is no such input.
    const OrtPort& input(const std::string& name) const;

    // A tensor over the caller's memory. `data` may be null where the shape has a zero.
    OrtPtr<OrtValue> tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                            ONNXTensorElementDataType type) const;
    OrtPtr<OrtRunOptions> new_run_options() const;

  private:
    void open(const std::string& path, const SessionOptions& options);
    void read_ports(bool of_inputs);
    void read_metadata();

    const OrtLibrary& library_;
    std::string path_;
    OrtPtr<OrtSession> session_;
    OrtPtr<OrtMemoryInfo> memory_;
    std::vector<OrtPort> inputs_;
    std::vector<OrtPort> outputs_;
    GraphFacts facts_;
};

}  // namespace nvlm
