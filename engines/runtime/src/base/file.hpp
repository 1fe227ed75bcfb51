// Reading whole files.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace nvlm {

// Carries `errno`; callers turn it into an Error that says what the file was for.
class FileError : public std::runtime_error {
  public:
    FileError(const std::string& path, int code);
    int code() const noexcept { return code_; }

  private:
    int code_;
};

// Throws FileError; a directory is EISDIR.
std::vector<std::uint8_t> read_file(const std::string& path);

}  // namespace nvlm
