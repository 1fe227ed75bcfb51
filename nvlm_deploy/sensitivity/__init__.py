"""How much each layer loses in each format, and the assignment of formats that loses least in a given size."""
