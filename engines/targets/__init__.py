"""Targets: the devices that engines are built for. One YAML file each, chosen with `--target`."""
