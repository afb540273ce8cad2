"""The ways to compute attention without the dropped keys: one file per backend, all held to one float64 oracle."""
