"""TensorRT: plans of the standard graphs, and sessions on them. TensorRT-RTX shares all but the library."""
