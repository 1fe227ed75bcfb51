// Both headers are C++17, and nothing else has to be included before them.
#include "nvlm/nvlm.hpp"

std::string ask(const std::string& bundle, const std::string& question);

std::string ask(const std::string& bundle, const std::string& question) {
    return nvlm::Engine(bundle).generate(nvlm::Request(question)).text();
}
