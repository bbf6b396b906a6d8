-- KEYS: the outbox, its lock. ARGV: who asks, how many entries, for how many milliseconds. Nothing where another has them.
-- The lock only saves work: an entry that two processes archive is booked once.
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return false end
local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[2])
if #entries > 0 then
  redis.pcall('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])  -- fails when out of memory, and then the entries must go all the more
end
return entries
