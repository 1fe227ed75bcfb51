// Calls every entry of nvlm.h while a hook throws at its start; one line "ENTRY STATUS" for each that returns
// a status, "ENTRY void" for the others. An exception that leaves an entry ends the process.

#include <iostream>
#include <new>
#include <stdexcept>
#include <string>

#include "abi/guard.hpp"

namespace {

enum class Kind { error, memory, standard, unknown };

Kind kind = Kind::error;
std::string entered;
bool hooked = false;

void throw_something(const char* entry) {
    entered = entry;
    switch (kind) {
        case Kind::error:
            throw nvlm::Error(nvlm::Status::verification, "thrown on purpose", "none");
        case Kind::memory:
            throw std::bad_alloc();
        case Kind::standard:
            throw std::logic_error("thrown on purpose");
        case Kind::unknown:
            throw 7;
    }
}

void report(const char* name, nvlm_status status) {
    std::cout << name << ' ' << status << (hooked && entered != name ? " was not entered" : "") << '\n';
    entered.clear();
}

#define STATUS(name, ...) report(#name, name(__VA_ARGS__))
#define VOID(name, ...) (name(__VA_ARGS__), std::cout << #name << " void\n")

void call_all() {
    std::size_t length = 0;
    double milliseconds = 0;
    STATUS(nvlm_engine_open, "", nullptr, nullptr);
    STATUS(nvlm_engine_get_info, nullptr, nullptr);
    STATUS(nvlm_generate, nullptr, nullptr, nullptr);
    STATUS(nvlm_generate_stream, nullptr, nullptr, nullptr, nullptr, nullptr);
    STATUS(nvlm_cancellation_new, nullptr);
    STATUS(nvlm_result_get_info, nullptr, nullptr);
    STATUS(nvlm_result_text, nullptr, nullptr, 0, &length);
    STATUS(nvlm_result_tokens, nullptr, 0, nullptr, 0, &length);
    STATUS(nvlm_result_timing, nullptr, "total", &milliseconds);
    STATUS(nvlm_result_json, nullptr, nullptr, 0, &length);
    STATUS(nvlm_tile, nullptr, nullptr, nullptr, 0, &length, nullptr, nullptr);
    STATUS(nvlm_tokenize, nullptr, "", nullptr, 0, &length);
    STATUS(nvlm_detokenize, nullptr, nullptr, 0, nullptr, 0, &length);
    STATUS(nvlm_cache_prefetch, nullptr, nullptr, nullptr);
    STATUS(nvlm_cache_get_info, nullptr, nullptr);
    STATUS(nvlm_cache_clear, nullptr);
    VOID(nvlm_engine_close, nullptr);
    VOID(nvlm_cancellation_reset, nullptr);
    VOID(nvlm_cancellation_free, nullptr);
    VOID(nvlm_cancel, nullptr);
    VOID(nvlm_result_free, nullptr);
    VOID(nvlm_version, );
    VOID(nvlm_last_error, );
    VOID(nvlm_last_hint, );
}

}  // namespace

int main() {
    // Without the hook every pointer is null: usage, all of them.
    call_all();
    nvlm::abi::entry_hook = throw_something;
    hooked = true;
    for (const Kind each : {Kind::error, Kind::memory, Kind::standard, Kind::unknown}) {
        kind = each;
        call_all();
        std::cout << "last error: " << nvlm_last_error() << '\n';
    }
    return 0;
}
