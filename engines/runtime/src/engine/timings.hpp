// A stopwatch with named stages.

#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace nvlm {

// Milliseconds by stage, in the order in which they were first entered.
using Timings = std::vector<std::pair<std::string, double>>;

class StageTimer {
  public:
    using Clock = std::chrono::steady_clock;

    // Adds the time of its life to a stage.
    class Stage {
      public:
        Stage(StageTimer& timer, const char* name) : timer_(timer), name_(name), start_(Clock::now()) {}
        ~Stage() { timer_.add(name_, milliseconds(Clock::now() - start_)); }
        Stage(const Stage&) = delete;
        Stage& operator=(const Stage&) = delete;

      private:
        StageTimer& timer_;
        const char* name_;
        Clock::time_point start_;
    };

    void add(const std::string& name, double ms) {
        for (auto& [known, sum] : stages_) {
            if (known == name) {
                sum += ms;
                return;
            }
        }
        stages_.emplace_back(name, ms);
    }
    double elapsed_ms() const { return milliseconds(Clock::now() - began_); }
    double of(const std::string& name) const {
        for (const auto& [known, ms] : stages_) {
            if (known == name) return ms;
        }
        return 0.0;
    }
    const Timings& stages() const noexcept { return stages_; }

  private:
    static double milliseconds(Clock::duration duration) {
        return std::chrono::duration<double, std::milli>(duration).count();
    }

    Clock::time_point began_ = Clock::now();
    Timings stages_;
};

}  // namespace nvlm
