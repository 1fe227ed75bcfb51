#include "base/file.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

namespace nvlm {

FileError::FileError(const std::string& path, int code)
    : std::runtime_error(path + ": " + std::strerror(code)), code_(code) {}

std::vector<std::uint8_t> read_file(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw FileError(path, errno);
    std::vector<std::uint8_t> bytes;
    constexpr std::size_t chunk = std::size_t{1} << 20;
    while (true) {
        const std::size_t before = bytes.size();
        bytes.resize(before + chunk);
        const std::size_t count = std::fread(bytes.data() + before, 1, chunk, file.get());
        bytes.resize(before + count);
        if (count < chunk) {
            if (std::ferror(file.get()) != 0) throw FileError(path, errno);
            return bytes;
        }
    }
}

}  // namespace nvlm
