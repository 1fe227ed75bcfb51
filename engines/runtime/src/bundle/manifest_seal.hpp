// How a manifest knows that it has changed: a copy of its fields and a digest of its text are in it.

#pragma once

#include <string>

#include "bundle/json.hpp"

namespace nvlm {

// Check and take away the two seals of `json`, which was parsed from `text`. Throws Error (verification) that
// names every changed field of `path` with the value it had.
void open_seals(Json& json, const std::string& text, const std::string& path, const std::string& hint);

}  // namespace nvlm
