#include "session/trt_cuda.hpp"

#include "error.hpp"

namespace nvlm {

void check_cuda(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    throw Error(Status::failure,
                std::string(call) + " failed with CUDA error " + std::to_string(static_cast<int>(status)) +
                    " (" + cudaGetErrorName(status) + ")",
                "nvidia-smi or tegrastats shows free memory; a smaller context takes less");
}

std::shared_ptr<CudaDevice> CudaDevice::open() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count < 1) {
        throw Error(Status::unsuitable,
                    std::string("this machine has no CUDA device that works (") + cudaGetErrorName(status) +
                        "), and TensorRT engines run on GPUs alone",
                    "open the bundle on its device; engines of ONNX Runtime run on any CPU");
    }
    const std::shared_ptr<CudaDevice> device(new CudaDevice);
    check_cuda(cudaStreamCreate(&device->stream_), "cudaStreamCreate");
    return device;
}

CudaDevice::~CudaDevice() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void* CudaDevice::allocate(std::size_t bytes) {
    void* address = nullptr;
    check_cuda(cudaMalloc(&address, bytes), "cudaMalloc");
    // Zeros, because a kernel may multiply what lies behind the end with a probability of zero.
    const cudaError_t status = cudaMemsetAsync(address, 0, bytes, stream_);
    if (status != cudaSuccess) free(address);
    check_cuda(status, "cudaMemsetAsync");
    return address;
}

void CudaDevice::free(void* address) noexcept {
    cudaFree(address);
}

// Pageable memory is staged before the call returns.
void CudaDevice::upload(void* address, const void* from, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(address, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
}

void CudaDevice::download(void* to, const void* address, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(to, address, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
}

void CudaDevice::copy_rows(void* target, std::size_t target_pitch, const void* source,
                           std::size_t source_pitch, std::size_t width, std::size_t rows) {
    check_cuda(cudaMemcpy2DAsync(target, target_pitch, source, source_pitch, width, rows,
                                 cudaMemcpyDeviceToDevice, stream_),
               "cudaMemcpy2DAsync");
}

void CudaDevice::wait() {
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

GpuMachine cuda_machine() {
    int major = 0, minor = 0, cuda = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
               "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0),
               "cudaDeviceGetAttribute");
    check_cuda(cudaDriverGetVersion(&cuda), "cudaDriverGetVersion");
    GpuMachine machine;
    machine.architecture = host_architecture();
    machine.sm = 10 * major + minor;
    machine.cuda = std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10);
    return machine;
}

std::size_t free_cuda_bytes() {
    std::size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
}

}  // namespace nvlm
