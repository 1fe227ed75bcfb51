"""Schemas of the files that people write or keep: model config, recipe, target, manifest."""
