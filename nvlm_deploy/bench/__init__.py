"""Speed beside accuracy: engines against transformers on the same weights, interleaved in one run."""
