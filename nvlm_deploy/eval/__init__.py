"""Task metrics: how often an engine or a checkpoint gives the right answer."""
