"""Look into one prompt, for the demo and notebooks: maps, masses, heads, sweeps and ladders."""
