// A GPU's memory by address, and work in one order: that of the calls. Nothing waits but `wait`.

#pragma once

#include <cstddef>
#include <memory>

namespace nvlm {

class Device {
  public:
    virtual ~Device() = default;

    // New memory, which is zero.
    virtual void* allocate(std::size_t bytes) = 0;
    virtual void free(void* address) noexcept = 0;
    // The host's memory may be changed afterwards.
    virtual void upload(void* address, const void* from, std::size_t bytes) = 0;
    // The host's memory holds the values after `wait`.
    virtual void download(void* to, const void* address, std::size_t bytes) = 0;
    // Copy rows of `width` bytes within the device; pitches are bytes from row to row.
    virtual void copy_rows(void* target, std::size_t target_pitch, const void* source,
                           std::size_t source_pitch, std::size_t width, std::size_t rows) = 0;
    // Throws Error (failure): something failed on the device.
    virtual void wait() = 0;
};

// Memory of a device, given back with the object.
class DeviceBuffer {
  public:
    // An address must not be null, not even that of nothing.
    DeviceBuffer(std::shared_ptr<Device> device, std::size_t bytes)
        : device_(std::move(device)), address_(device_->allocate(bytes == 0 ? 1 : bytes)) {}
    ~DeviceBuffer() { device_->free(address_); }
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;

    void* address() const noexcept { return address_; }

  private:
    std::shared_ptr<Device> device_;
    void* address_;
};

}  // namespace nvlm
