// How a tokenizer is refused.

#pragma once

#include <string>

#include "error.hpp"

namespace nvlm {

// `what` is a sentence of its own, or the predicate of the source.
[[noreturn]] inline void refuse_tokenizer(const std::string& source, const std::string& what,
                                          const char* between = ": ") {
    throw Error(Status::failure, source + between + what,
                "use the tokenizer files of nvidia/NVLM-D-72B, which has the extra tokens of Qwen2.5");
}

}  // namespace nvlm
