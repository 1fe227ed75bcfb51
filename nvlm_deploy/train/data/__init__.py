"""Training data: sources, blends, samples, and the stream of sequences that a process works on."""
