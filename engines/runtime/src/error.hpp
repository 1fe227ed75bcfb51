// The one kind of error inside the library: what went wrong, and what can be done about it.

#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace nvlm {

// The numbers are those of `nvlm_status` in nvlm.h and the exit codes of nvlm-build.
enum class Status : int {
    ok = 0,
    failure = 1,
    usage = 2,
    unsuitable = 3,
    verification = 4,
    cancelled = 130,
};

class Error : public std::runtime_error {
  public:
    Error(Status status, const std::string& message, std::string hint = {})
        : std::runtime_error(message), status_(status), hint_(std::move(hint)) {}

    Status status() const noexcept { return status_; }
    const std::string& hint() const noexcept { return hint_; }

  private:
    Status status_;
    std::string hint_;
};

}  // namespace nvlm
