// Small pieces of text that errors are made of.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nvlm {

// 1234567 -> "1,234,567".
std::string grouped(std::int64_t number);

// {"a", "b"} -> "a, b".
std::string joined(const std::vector<std::string>& items);

}  // namespace nvlm
