"""How θ moves: the only loop, what its steps launch or replay, and a material's way through it."""
