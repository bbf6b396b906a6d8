-- KEYS: the hold, the expiries. ARGV: when it lapses. An expiry never moves back.
local hold = redis.call('HMGET', KEYS[1], 'x', 'l')
if not hold[1] or hold[2] then return 0 end
if tonumber(ARGV[1]) > tonumber(hold[1]) then
  redis.call('HSET', KEYS[1], 'x', ARGV[1])
  redis.call('ZADD', KEYS[2], ARGV[1], string.match(KEYS[1], '}:h:(.*)$'))
end
return 1
