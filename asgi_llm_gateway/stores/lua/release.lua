-- KEYS: the hold, the expiries. ARGV: nonce. The caller may not know the hold's accounts, which is why they are not declared.
local base = string.sub(KEYS[2], 1, -2)
local hold = redis.call('HMGET', KEYS[1], 'm', 't', 'a', 'e', 'l', 'd')
if hold[6] then return hold[6] == ARGV[1] and 1 or 0 end
if hold[5] then return 0 end
redis.call('ZREM', KEYS[2], string.sub(KEYS[1], #base + 3))  -- first, as in settle.lua
if not hold[1] then
  ended(KEYS[1], '-')  -- the hold may still be on its way, over a connection that was thought dead
  return 0
end
book(base, hold[3], hold[4], hold[1], hold[2], '0', '0')
ended(KEYS[1], ARGV[1])
return 1
