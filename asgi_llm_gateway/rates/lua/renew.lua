-- Calls that still run keep their places, also in a server that forgot them.
-- KEYS: a set of leases. ARGV: the lease in microseconds, then the leases' ids.
local now, lease = micros(), tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], int(now + lease), ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], int(lease / 1000 + 1000))
return 1
