"""What the demo shows and a notebook may want to: maps, masses, heads, sweeps and ladders of one prompt."""
