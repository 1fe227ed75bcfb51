#include "abi/guard.hpp"

#include <cstdio>
#include <exception>
#include <new>

namespace nvlm::abi {

namespace {

// Fixed memory: an error must be told also when memory is what is missing.
constexpr std::size_t text_bytes = 4096;
thread_local char error_text[text_bytes] = "";
thread_local char hint_text[text_bytes] = "";

// Cut at the start of a character.
void keep(char* to, const char* text) noexcept {
    std::size_t length = std::strlen(text);
    if (length >= text_bytes) {
        length = text_bytes - 1;
        while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0U) == 0x80U) --length;
    }
    std::memcpy(to, text, length);
    to[length] = '\0';
}

nvlm_status keep_error(nvlm_status status, const char* text, const char* hint) noexcept {
    keep(error_text, text);
    keep(hint_text, hint);
    return status;
}

}  // namespace

std::atomic<void (*)(const char* entry)> entry_hook{nullptr};

const char* last_error() noexcept {
    return error_text;
}
const char* last_hint() noexcept {
    return hint_text;
}

nvlm_status keep_exception() noexcept {
    try {
        throw;
    } catch (const Error& error) {
        return keep_error(static_cast<nvlm_status>(error.status()), error.what(), error.hint().c_str());
    } catch (const std::bad_alloc&) {
        return keep_error(NVLM_FAILURE, "there is not enough memory",
                          "use a smaller engine, fewer requests at once, or mapped weights");
    } catch (const std::exception& error) {
        return keep_error(NVLM_FAILURE, error.what(), "");
    } catch (...) {
        return keep_error(NVLM_FAILURE, "an exception of an unknown kind", "");
    }
}

void require(const void* pointer, const char* name) {
    if (pointer == nullptr) throw Error(Status::usage, std::string(name) + " is NULL");
}

}  // namespace nvlm::abi
