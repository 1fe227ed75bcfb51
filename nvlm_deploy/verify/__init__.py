"""Hold an engine against its checkpoint: layers, logits, answers, and the contracts of prompt and tiles."""
