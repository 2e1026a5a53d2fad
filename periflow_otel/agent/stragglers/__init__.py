"""Which ranks of a node do not go on, or hold up the others: when to look, whom to ask, and what is said of it."""
