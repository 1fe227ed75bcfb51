#include "session/ort_graph.hpp"

#include <sched.h>

#include <limits>
#include <thread>

#include "error.hpp"

namespace nvlm {

namespace {

const char* const context_key = "nvlm.context_length";
const char* const record_key = "nvlm.record";
constexpr std::int64_t max_elements = std::numeric_limits<std::int32_t>::max();

int usable_cpus() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    return static_cast<int>(std::thread::hardware_concurrency());
}

const char* type_name(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
            return "float32";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return "float16";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
            return "int64";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
            return "int32";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
            return "uint8";
        default:
            return "another";
    }
}

OrtPtr<OrtSessionOptions> session_options(const OrtLibrary& library, const SessionOptions& options) {
    const OrtApi& api = library.api();
    OrtSessionOptions* made = nullptr;
    library.check(api.CreateSessionOptions(&made), "ONNX Runtime has no options");
    OrtPtr<OrtSessionOptions> settings(made, api.ReleaseSessionOptions);
    const int threads = options.threads > 0 ? options.threads : usable_cpus();
    library.check(api.SetIntraOpNumThreads(made, threads), "threads");
    library.check(api.SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_ERROR), "log level");
    if (options.mapped) {
        // Repacked weights, and casts that the optimizer computes ahead, would be copies in memory.
        library.check(api.AddSessionConfigEntry(made, "session.disable_prepacking", "1"), "prepacking");
        library.check(api.SetSessionGraphOptimizationLevel(made, ORT_DISABLE_ALL), "optimization");
    }
    return settings;
}

}  // namespace

std::size_t element_bytes(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
            return 4;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return 2;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
            return 8;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
            return 1;
        default:
            throw Error(Status::failure, "a graph has a tensor of a type that no engine of nvlm-build has");
    }
}

std::size_t elements(const OrtPort& port, std::size_t first) {
    std::int64_t product = 1;
    for (std::size_t axis = first; axis < port.shape.size(); ++axis) {
        const std::int64_t size = port.shape[axis];
        if (size < 1 || size > max_elements / product) {
            throw Error(Status::failure, "a graph's " + port.name + " has no size that can be used",
                        "build the bundle again");
        }
        product *= size;
    }
    return static_cast<std::size_t>(product);
}

OrtGraph::OrtGraph(const OrtLibrary& library, const std::string& path, const SessionOptions& options)
    : library_(library),
      path_(path),
      session_(nullptr, library.api().ReleaseSession),
      memory_(nullptr, library.api().ReleaseMemoryInfo) {
    open(path, options);
    read_ports(true);
    read_ports(false);
    read_metadata();
}

// By its path, so that weights in its data file are mapped and never read as a whole.
void OrtGraph::open(const std::string& path, const SessionOptions& options) {
    const OrtApi& api = library_.api();
    const OrtPtr<OrtSessionOptions> settings = session_options(library_, options);
    OrtMemoryInfo* memory = nullptr;
    library_.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), "memory");
    memory_.reset(memory);
    OrtSession* session = nullptr;
    try {
        library_.check(api.CreateSession(library_.environment(), path.c_str(), settings.get(), &session),
                       path + " cannot be loaded");
    } catch (const Error& error) {
        throw Error(error.status(), error.what(), "the file is missing or damaged; build the bundle again");
    }
    session_.reset(session);
}

void OrtGraph::read_ports(bool of_inputs) {
    const OrtApi& api = library_.api();
    OrtAllocator* allocator = nullptr;
    library_.check(api.GetAllocatorWithDefaultOptions(&allocator), "memory");
    std::size_t count = 0;
    library_.check((of_inputs ? api.SessionGetInputCount : api.SessionGetOutputCount)(session(), &count),
                   path_);
    Json& described = of_inputs ? facts_.inputs : facts_.outputs;
    described = Json::object();
    for (std::size_t i = 0; i < count; ++i) {
        OrtPort port{};
        char* name = nullptr;
        library_.check(
            (of_inputs ? api.SessionGetInputName : api.SessionGetOutputName)(session(), i, allocator, &name),
            path_);
        port.name = name;
        library_.check(api.AllocatorFree(allocator, name), path_);
        OrtTypeInfo* type = nullptr;
        library_.check(
            (of_inputs ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session(), i, &type),
            path_);
        const OrtPtr<OrtTypeInfo> owner(type, api.ReleaseTypeInfo);
        const OrtTensorTypeAndShapeInfo* tensor = nullptr;
        library_.check(api.CastTypeInfoToTensorInfo(type, &tensor), path_);
        if (tensor == nullptr) throw Error(Status::failure, path_ + ": " + port.name + " is no tensor");
        library_.check(api.GetTensorElementType(tensor, &port.type), path_);
        std::size_t rank = 0;
        library_.check(api.GetDimensionsCount(tensor, &rank), path_);
        port.shape.resize(rank);
        library_.check(api.GetDimensions(tensor, port.shape.data(), rank), path_);
        std::vector<const char*> names(rank);
        library_.check(api.GetSymbolicDimensions(tensor, names.data(), rank), path_);
        Json shape = Json::array();
        for (std::size_t axis = 0; axis < rank; ++axis) {
            shape.push_back(port.shape[axis] >= 0 ? Json(port.shape[axis]) : Json(names[axis]));
        }
        described[port.name] = Json{{"dtype", type_name(port.type)}, {"shape", shape}};
        (of_inputs ? inputs_ : outputs_).push_back(std::move(port));
    }
}

void OrtGraph::read_metadata() {
    const OrtApi& api = library_.api();
    OrtAllocator* allocator = nullptr;
    library_.check(api.GetAllocatorWithDefaultOptions(&allocator), "memory");
    OrtModelMetadata* made = nullptr;
    library_.check(api.SessionGetModelMetadata(session(), &made), path_);
    const OrtPtr<OrtModelMetadata> metadata(made, api.ReleaseModelMetadata);
    const auto look_up = [&](const char* key) {
        char* value = nullptr;
        library_.check(api.ModelMetadataLookupCustomMetadataMap(made, allocator, key, &value), path_);
        std::string text = value == nullptr ? "" : value;
        if (value != nullptr) library_.check(api.AllocatorFree(allocator, value), path_);
        return text;
    };
    const std::string context = look_up(context_key);
    if (!context.empty()) facts_.context_length = std::strtoll(context.c_str(), nullptr, 10);
    const std::string record = look_up(record_key);
    if (!record.empty()) facts_.record = parse_object(record, path_ + ": " + record_key);
}

const OrtPort& OrtGraph::input(const std::string& name) const {
    for (const OrtPort& port : inputs_) {
        if (port.name == name) return port;
    }
    throw Error(Status::failure, path_ + " has no input " + name, "build the bundle again");
}

OrtPtr<OrtValue> OrtGraph::tensor(void* data, std::size_t bytes, const std::vector<std::int64_t>& shape,
                                  ONNXTensorElementDataType type) const {
    static std::int64_t nowhere = 0;
    const OrtApi& api = library_.api();
    OrtValue* value = nullptr;
    library_.check(api.CreateTensorWithDataAsOrtValue(memory_.get(), data == nullptr ? &nowhere : data, bytes,
                                                      shape.data(), shape.size(), type, &value),
                   path_);
    return {value, api.ReleaseValue};
}

OrtPtr<OrtRunOptions> OrtGraph::new_run_options() const {
    OrtRunOptions* made = nullptr;
    library_.check(library_.api().CreateRunOptions(&made), path_);
    return {made, library_.api().ReleaseRunOptions};
}

}  // namespace nvlm
