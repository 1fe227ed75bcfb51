// Fields that do not agree: what a manifest says, what was found instead, and where it was found.

#pragma once

#include <string>
#include <vector>

#include "bundle/json.hpp"
#include "error.hpp"

namespace nvlm {

// `witness` says who has `expected` instead: "config.json gives", "this machine has". Texts are JSON.
struct Mismatch {
    std::string field;
    std::string value;
    std::string witness;
    std::string expected;
};

using Mismatches = std::vector<Mismatch>;

// Compare two JSON values field by field, whatever the order of keys; 1, 1.0 and true are three values.
Mismatches differences(const Json& value, const Json& expected, const std::string& witness,
                       const std::string& field = {});

// Compare those fields of a section that `wanted` names; with `known`, only those that it has.
Mismatches expect(const Json& section, const Json& wanted, const std::string& witness,
                  const std::string& prefix, bool known = false);

// Throw an Error that names every field, if there is one; `where` is the manifest.
void refuse(const Mismatches& found, const std::string& where, const std::string& hint,
            Status status = Status::verification);

}  // namespace nvlm
