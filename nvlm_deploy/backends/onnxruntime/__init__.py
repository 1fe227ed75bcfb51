"""The ONNX Runtime backend: portable CPU engines."""
