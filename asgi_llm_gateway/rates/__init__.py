"""How often, how much, how many at once: the arithmetic of rate limits, wherever it is counted."""
