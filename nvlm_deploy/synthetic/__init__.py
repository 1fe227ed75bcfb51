"""Generated material: documents with questions and answers, and checkpoints of random weights."""
