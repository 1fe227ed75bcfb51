// The wall between C++ and C: no exception passes it, and what it carried is kept for the caller's thread.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

#include "error.hpp"
#include "nvlm/nvlm.h"

namespace nvlm::abi {

// Called at the start of every entry with its name; tests throw from it. Null outside of tests.
extern std::atomic<void (*)(const char* entry)> entry_hook;

const char* last_error() noexcept;
const char* last_hint() noexcept;

// Keeps the exception that is being handled; returns its status.
nvlm_status keep_exception() noexcept;

template <class Body>
nvlm_status guard(const char* entry, Body&& body) noexcept {
    try {
        if (const auto hook = entry_hook.load(std::memory_order_relaxed)) hook(entry);
        std::forward<Body>(body)();
        return NVLM_OK;
    } catch (...) {
        return keep_exception();
    }
}

// Throws Error (usage): the pointer is null.
void require(const void* pointer, const char* name);

// A structure of the caller, who may have been compiled with an older or a newer header. Throws Error
// (usage): it is null, has no size or one that no structure has, or sets a field that this library does not
// know.
template <class Struct>
Struct read_struct(const Struct* given, const char* name) {
    require(given, name);
    const std::size_t size = given->struct_size;
    // Elements of a list that are such sizes apart would not be aligned.
    const bool odd = size % alignof(Struct) != 0;
    if (size < sizeof(std::size_t) || size > sizeof(Struct) + 4096 || odd) {
        throw Error(Status::usage, std::string(name) + ".struct_size is " + std::to_string(size),
                    "set it to sizeof of the structure, and every other field to zero");
    }
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    for (std::size_t at = sizeof(Struct); at < size; ++at) {
        if (bytes[at] != 0) {
            throw Error(Status::usage, std::string(name) + " has a field that this libnvlm does not know",
                        "install the libnvlm that the program was compiled for");
        }
    }
    Struct known{};
    std::memcpy(&known, bytes, std::min(size, sizeof(Struct)));
    return known;
}

// The other way: fill as much of the caller's structure as it has, and leave its size.
template <class Struct>
void write_struct(Struct filled, Struct* to, const char* name) {
    const Struct given = read_struct(to, name);
    filled.struct_size = given.struct_size;
    std::memcpy(to, &filled, std::min(given.struct_size, sizeof(Struct)));
}

// Copy `count` elements into a buffer of the caller, as nvlm.h describes it.
template <class Element>
void write_buffer(const Element* from, std::size_t count, std::size_t terminator, Element* buffer,
                  std::size_t capacity, std::size_t* length) {
    if (length != nullptr) *length = count;
    if (buffer == nullptr && capacity == 0) return;
    require(buffer, "buffer");
    if (capacity < count + terminator) {
        throw Error(Status::usage,
                    "the buffer has room for " + std::to_string(capacity) + " and " +
                        std::to_string(count + terminator) + " are needed",
                    "call with a null buffer and capacity 0 first");
    }
    std::copy_n(from, count, buffer);
    if (terminator != 0) buffer[count] = Element{};
}

inline void write_text(const std::string& text, char* buffer, std::size_t capacity, std::size_t* length) {
    write_buffer(text.data(), text.size(), 1, buffer, capacity, length);
}

}  // namespace nvlm::abi
