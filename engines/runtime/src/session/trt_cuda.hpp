// The first CUDA device that this process sees. Not yet run on a GPU.

#pragma once

#include <memory>
#include <string>

#include <cuda_runtime_api.h>

#include "session/trt_device.hpp"
#include "session/trt_machine.hpp"

namespace nvlm {

// Throws Error (failure) that names the call, for everything but success.
void check_cuda(cudaError_t status, const char* call);

class CudaDevice : public Device {
  public:
    // Throws Error (unsuitable): there is no device, or no driver that works.
    static std::shared_ptr<CudaDevice> open();
    ~CudaDevice() override;

    void* allocate(std::size_t bytes) override;
    void free(void* address) noexcept override;
    void upload(void* address, const void* from, std::size_t bytes) override;
    void download(void* to, const void* address, std::size_t bytes) override;
    void copy_rows(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                   std::size_t width, std::size_t rows) override;
    void wait() override;

    cudaStream_t stream() const noexcept { return stream_; }

  private:
    CudaDevice() = default;

    cudaStream_t stream_ = nullptr;
};

// Compute capability and CUDA of the first device; `versions` are the caller's.
GpuMachine cuda_machine();

// Bytes of device memory that nobody uses.
std::size_t free_cuda_bytes();

}  // namespace nvlm
