// nvlm-cli: ask an engine about images, as `nvlm-build run` does, without Python.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "arguments.hpp"

namespace {

// The first SIGINT or SIGTERM ends the request, the second one the program. Must be called before any other
// thread is there, so that all of them leave these signals to this one.
void cancel_on_signals(nvlm::Cancellation& cancellation) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread([signals, &cancellation] {
        int number = 0;
        sigwait(&signals, &number);
        cancellation.cancel();
        sigwait(&signals, &number);
        _exit(NVLM_CANCELLED);
    }).detach();
}

void print(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
}

void print_times(const nvlm::Result& result) {
    std::string line;
    for (const char* stage :
         {"tile", "tokenize", "vision", "prefill", "first_token", "decode", "per_token", "total"}) {
        char text[64];
        std::snprintf(text, sizeof text, "%s%s %.1f ms", line.empty() ? "" : ", ", stage,
                      result.timing_ms(stage));
        line += text;
    }
    std::fprintf(stderr, "%s\n", line.c_str());
}

int answer(const Arguments& arguments) {
    // Never freed: the thread that waits for signals has it until the process ends.
    auto& cancellation = *new nvlm::Cancellation;
    cancel_on_signals(cancellation);
    const nvlm::Engine engine(arguments.bundle, arguments.options);
    nvlm::Request request = arguments.request;
    request.cancellation = &cancellation;
    const nvlm::Result result = engine.generate(request, [&](std::string_view piece) {
        if (!arguments.stream) return;
        print(piece);
        std::fflush(stdout);
    });
    if (arguments.as_json) {
        print(result.json() + "\n");
    } else {
        print(arguments.stream ? "\n" : result.text() + "\n");
        print_times(result);
    }
    return NVLM_OK;
}

int fail(const char* message, const std::string& hint, int code) {
    std::fprintf(stderr, "error: %s\n", message);
    if (!hint.empty()) std::fprintf(stderr, "\nhint: %s\n", hint.c_str());
    return code;
}

}  // namespace

int main(int count, char** words) {
    try {
        const Arguments arguments = parse_arguments({words + 1, words + count});
        if (arguments.help) return print(help_text), NVLM_OK;
        if (arguments.version) return print("nvlm-cli " + nvlm::version() + "\n"), NVLM_OK;
        return answer(arguments);
    } catch (const nvlm::Failure& failure) {
        return fail(failure.what(), failure.hint(), failure.status());
    } catch (const std::exception& error) {
        return fail(error.what(), "", NVLM_FAILURE);
    }
}
