// SHA-256 of files and of pieces of memory.

#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace nvlm {

class Sha256 {
  public:
    Sha256();
    ~Sha256();
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;

    void add(const void* data, std::size_t size);
    // Hexadecimal; the end of this digest's use.
    std::string finish();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

std::string sha256_of(const std::string& text);

// Reads in pieces of 1 MiB. Throws FileError.
std::string sha256_of_file(const std::string& path);

}  // namespace nvlm
