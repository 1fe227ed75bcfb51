"""Calibration sets: what a model is shown while it is quantized. One YAML file each."""
