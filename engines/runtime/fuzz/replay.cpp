// Gives files to a fuzzer's function, without libFuzzer: replay_NAME FILE...

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <vector>

#include "base/file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** words) {
    for (int i = 1; i < count; ++i) {
        // The name first: what crashes is the last one told.
        std::cout << words[i] << std::endl;
        const std::vector<std::uint8_t> bytes = nvlm::read_file(words[i]);
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    return 0;
}
