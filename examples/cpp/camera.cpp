// The loop of a camera without a camera: camera BUNDLE QUESTION FRAME ...
//
// One thread encodes frames as they come, and another asks about the newest
// one. A frame that has been encoded is in the cache of the engine, so that a
// question about it starts with the prefill; a frame that has not changed costs
// nothing. Frames are files here; a camera gives pixels:
// nvlm::Picture::from_pixels.

#include <nvlm/nvlm.hpp>

#include <condition_variable>
#include <cstddef>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

// Frames that are ready to be asked about.
class Ready {
public:
  void add() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    changed_.notify_one();
  }
  void wait_for(std::size_t frame) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return count_ > frame; });
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t count_ = 0;
};

void ask_about(const nvlm::Engine &engine, const std::string &question,
               const std::vector<std::string> &frames, Ready &ready) {
  for (std::size_t i = 0; i < frames.size(); ++i) {
    ready.wait_for(i);
    nvlm::Request request(question);
    request.add_image(frames[i]);
    request.max_new_tokens = 64;
    const nvlm::Result result = engine.generate(request);
    std::cout << frames[i] << ": " << result.text() << "  (vision "
              << result.timing_ms("vision") << " ms)\n";
  }
}

} // namespace

int main(int count, char **words) {
  if (count < 4) {
    std::cerr << "usage: camera BUNDLE QUESTION FRAME ...\n";
    return NVLM_USAGE;
  }
  try {
    const nvlm::Engine engine(words[1]);
    const std::vector<std::string> frames(words + 3, words + count);
    Ready ready;
    std::thread encoder([&] {
      for (const std::string &frame : frames) {
        try {
          engine.prefetch(nvlm::Picture::from_path(frame));
        } catch (const nvlm::Failure &) {
          // The question about this frame meets the same failure, and tells it.
        }
        ready.add();
      }
    });
    try {
      ask_about(engine, words[2], frames, ready);
    } catch (...) {
      encoder.join();
      throw;
    }
    encoder.join();
    return NVLM_OK;
  } catch (const nvlm::Failure &failure) {
    std::cerr << "error: " << failure.what() << "\n\nhint: " << failure.hint()
              << '\n';
    return failure.status();
  }
}
