"""TensorRT-RTX: plans that are compiled ahead of time, on machines without a GPU."""
