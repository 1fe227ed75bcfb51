"""Stages from directory to directory: plan first, then write all of the output or none."""
