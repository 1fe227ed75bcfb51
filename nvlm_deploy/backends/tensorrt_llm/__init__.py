"""The TensorRT-LLM backend: engines from its checkpoints, and their runtime. Not yet run on a GPU."""
