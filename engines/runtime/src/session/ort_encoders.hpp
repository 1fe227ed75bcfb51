// The graphs that see images, run by ONNX Runtime: tiles to visual tokens, and these to keys and values.

#pragma once

#include "session/ort_graph.hpp"

namespace nvlm {

// Both throw Error (failure): the file is missing, damaged, or another graph. That of tiles is held against
// the manifest before anything else, and throws Error (verification) for what does not fit.
std::unique_ptr<VisionSession> open_ort_vision(const OrtLibrary& library, const std::string& path,
                                               const SessionOptions& options);
std::unique_ptr<TileSession> open_ort_tiles(const OrtLibrary& library, const Bundle& bundle,
                                            const SessionOptions& options);

}  // namespace nvlm
