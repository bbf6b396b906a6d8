-- KEYS: the expiries. ARGV: now, how many at most, whether they are charged. How many there were.
return lapse(string.sub(KEYS[1], 1, -2), ARGV[1], ARGV[2], ARGV[3])
