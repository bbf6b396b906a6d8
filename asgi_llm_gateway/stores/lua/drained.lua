-- KEYS: the outbox, its lock. ARGV: who asks, the entries that are archived. How many are left.
if #ARGV > 1 then redis.call('XDEL', KEYS[1], unpack(ARGV, 2)) end  -- the empty stream stays: its ids must not repeat
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return redis.call('XLEN', KEYS[1])
