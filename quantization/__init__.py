"""Recipes: how numbers are stored. One YAML file each, chosen with `--recipe`."""
