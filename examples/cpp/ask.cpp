// Ask an engine about an image: ask BUNDLE IMAGE QUESTION

#include <nvlm/nvlm.hpp>

#include <iostream>

int main(int count, char **words) {
  if (count != 4) {
    std::cerr << "usage: ask BUNDLE IMAGE QUESTION\n";
    return NVLM_USAGE;
  }
  try {
    const nvlm::Engine engine(words[1]);
    nvlm::Request request(words[3]);
    request.add_image(words[2]);
    request.max_new_tokens = 64;
    engine.generate(request, [](std::string_view piece) {
      std::cout << piece << std::flush;
    });
    std::cout << '\n';
    return NVLM_OK;
  } catch (const nvlm::Failure &failure) {
    std::cerr << "error: " << failure.what() << "\n\nhint: " << failure.hint()
              << '\n';
    return failure.status();
  }
}
