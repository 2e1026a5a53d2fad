"""Who holds up the others, as far as Python stacks tell, and that as spans. Pure."""
