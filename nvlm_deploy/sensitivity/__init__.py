"""How much each layer loses in each format, and the assignment that loses least in a given size."""
