// The wish to end a request, told from another thread.

#pragma once

#include <atomic>
#include <functional>
#include <mutex>

namespace nvlm {

// One request may use it at a time; it stays cancelled until `reset`.
class Cancellation {
  public:
    // Safe to call from any thread, at any time.
    void cancel();
    void reset() noexcept { requested_ = false; }
    bool requested() const noexcept { return requested_; }
    // Throws Error (cancelled).
    void throw_if_requested() const;

    // While it lives, `stop` is called by `cancel`, so that long work inside a library ends early.
    class Scope {
      public:
        Scope(Cancellation& cancellation, std::function<void()> stop);
        ~Scope();
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        Cancellation& cancellation_;
    };

  private:
    std::atomic<bool> requested_{false};
    std::mutex mutex_;
    std::function<void()> stop_;
};

}  // namespace nvlm
