// The command line of nvlm-cli: the options of `nvlm-build run`.

#pragma once

#include <string>
#include <vector>

#include "nvlm/nvlm.hpp"

struct Arguments {
    std::string bundle;
    nvlm::Request request;
    nvlm::EngineOptions options;
    bool stream = false;
    bool as_json = false;
    bool help = false;
    bool version = false;
};

// Throws nvlm::Failure (usage): an unknown option, a value that is no number, or no bundle or prompt.
Arguments parse_arguments(const std::vector<std::string>& words);

extern const char* const help_text;
