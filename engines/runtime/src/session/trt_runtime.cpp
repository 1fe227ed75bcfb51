#include "session/trt_runtime.hpp"

#include <iostream>
#include <utility>

#include <NvInfer.h>

#include "base/file.hpp"
#include "error.hpp"

namespace nvlm {

namespace {

class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
        if (severity > Severity::kERROR) return;
        // The last of them says why a call failed; the errors of this library name the call alone.
        try {
            std::cerr << "TensorRT: " << text << '\n';
        } catch (...) {
            return;
        }
    }
};

// One for the process: the library keeps the first that it is given.
Logger& logger() {
    static auto* const instance = new Logger;
    return *instance;
}

nvinfer1::Dims dimensions(const PlanShape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

PlanShape shape_of(const nvinfer1::Dims& dims) {
    return dims.nbDims < 0 ? PlanShape() : PlanShape(dims.d, dims.d + dims.nbDims);
}

std::string text_of(const PlanShape& shape) {
    std::string text;
    for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "[" + text + "]";
}

class TrtContext : public PlanContext {
  public:
    TrtContext(std::string path, std::shared_ptr<CudaDevice> device,
               std::unique_ptr<nvinfer1::IExecutionContext> context)
        : path_(std::move(path)), device_(std::move(device)), context_(std::move(context)) {}
    ~TrtContext() override { forget(); }

  protected:
    void set_shape(const std::string& name, const PlanShape& shape) override {
        if (context_->setInputShape(name.c_str(), dimensions(shape))) return;
        fail(name + " of shape " + text_of(shape) + " is outside of its profile");
    }
    void set_address(const std::string& name, void* address) override {
        if (!context_->setTensorAddress(name.c_str(), address)) fail("there is no tensor " + name);
    }
    void start() override {
        if (!context_->enqueueV3(device_->stream())) fail("the computation could not be started");
    }
    void capture() override {
        forget();
        const cudaStream_t stream = device_->stream();
        check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                   "cudaStreamBeginCapture");
        const bool started = context_->enqueueV3(stream);
        cudaGraph_t graph = nullptr;
        // A capture that has begun must end, whatever came of it.
        const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
        if (!started) fail("the computation could not be captured");
        check_cuda(ended, "cudaStreamEndCapture");
        const cudaError_t made = cudaGraphInstantiate(&ready_, graph, 0);
        cudaGraphDestroy(graph);
        check_cuda(made, "cudaGraphInstantiate");
    }
    void launch() override { check_cuda(cudaGraphLaunch(ready_, device_->stream()), "cudaGraphLaunch"); }

  private:
    [[noreturn]] void fail(const std::string& what) const {
        throw Error(Status::failure, path_ + ": " + what);
    }
    void forget() noexcept {
        if (ready_ != nullptr) cudaGraphExecDestroy(ready_);
        ready_ = nullptr;
    }

    std::string path_;
    std::shared_ptr<CudaDevice> device_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaGraphExec_t ready_ = nullptr;
};

class TrtPlan : public Plan {
  public:
    TrtPlan(std::string path, std::shared_ptr<CudaDevice> device)
        : path_(std::move(path)), device_(std::move(device)) {
        const std::vector<std::uint8_t> bytes = read();
        runtime_.reset(nvinfer1::createInferRuntime(logger()));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (!engine_) {
            throw Error(
                Status::unsuitable,
                path_ + " cannot be opened by TensorRT " + tensorrt_version() + " on this GPU",
                "a plan runs on the GPU and the version that manifest.json names; build it again here");
        }
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            names_.emplace_back(engine_->getIOTensorName(i));
        }
    }

    const std::string& path() const override { return path_; }
    const std::vector<std::string>& names() const override { return names_; }
    bool is_input(const std::string& name) const override {
        return engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    }
    PlanShape shape(const std::string& name) const override {
        return shape_of(engine_->getTensorShape(name.c_str()));
    }
    PlanShape largest(const std::string& name) const override {
        return shape_of(engine_->getProfileShape(name.c_str(), 0, nvinfer1::OptProfileSelector::kMAX));
    }
    std::size_t item_bytes(const std::string& name) const override {
        switch (engine_->getTensorDataType(name.c_str())) {
            case nvinfer1::DataType::kFLOAT:
            case nvinfer1::DataType::kINT32:
                return 4;
            case nvinfer1::DataType::kHALF:
            case nvinfer1::DataType::kBF16:
                return 2;
            case nvinfer1::DataType::kINT64:
                return 8;
            case nvinfer1::DataType::kUINT8:
                return 1;
            default:
                throw Error(Status::failure,
                            path_ + ": " + name + " is of a type that no plan of nvlm-build has");
        }
    }
    std::size_t profiles() const override {
        return static_cast<std::size_t>(engine_->getNbOptimizationProfiles());
    }

    std::unique_ptr<PlanContext> new_context(std::size_t profile) override {
        std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext());
        if (!context) {
            throw Error(Status::failure, path_ + ": there is no memory for an execution context",
                        "build the engine with a smaller context or batch: --set target.max_context=N");
        }
        if (!context->setOptimizationProfileAsync(static_cast<std::int32_t>(profile), device_->stream())) {
            throw Error(Status::failure, path_ + " has no optimization profile " + std::to_string(profile));
        }
        device_->wait();
        return std::make_unique<TrtContext>(path_, device_, std::move(context));
    }

  private:
    std::vector<std::uint8_t> read() const {
        try {
            return read_file(path_);
        } catch (const FileError& error) {
            throw Error(Status::failure, error.what());
        }
    }

    std::string path_;
    std::shared_ptr<CudaDevice> device_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::vector<std::string> names_;
};

}  // namespace

// From 10 on the library's number is 10000 major + 100 minor + patch.
std::string tensorrt_version() {
    const std::int32_t number = getInferLibVersion();
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
}

std::unique_ptr<Plan> open_trt_plan(const std::string& path, std::shared_ptr<CudaDevice> device) {
    return std::make_unique<TrtPlan>(path, std::move(device));
}

}  // namespace nvlm
