-- KEYS: the hold, the expiries, the outbox, the accounts. ARGV: nonce, cost, tokens, the record, and the hold as its caller
-- knows it: money, tokens, expires, spent, accounts ('-': this ledger did not give it out).
local base = string.sub(KEYS[2], 1, -2)
local id = string.sub(KEYS[1], #base + 3)
local hold = redis.call('HMGET', KEYS[1], 'm', 't', 'x', 's', 'a', 'e', 'l', 'cm', 'ct', 'd')
if hold[10] then return hold[10] == ARGV[1] and 1 or 0 end
-- The first write: Redis lets it through when it is out of memory, and then all of the script. A call is booked, full or not.
redis.call('ZREM', KEYS[2], id)
if not hold[1] then
  if ARGV[9] == '-' then return 0 end
  -- The data was lost since the hold was taken (a flush, a replica that lagged behind): nothing is held for the call, and its
  -- cost is booked all the same. A settle repeated after KEEP_ENDED comes here too, and counts twice until the account is read
  -- from the archive again, which has each call once.
  hold = {ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ''}
end
local held, tokens_held = hold[1], hold[2]
if hold[7] then held, tokens_held = '0', '0' end
book(base, hold[5], hold[6], held, tokens_held, add(ARGV[2], hold[8] or '0', -1), add(ARGV[3], hold[9] or '0', -1))
ended(KEYS[1], ARGV[1])
local over = add(ARGV[2], hold[1], -1)
if less(over, '0') then over = '0' end
push(KEYS[3], id, hold[5], hold[1], hold[2], hold[3], hold[4], over, hold[8] and 'R' or 'r', ARGV[4])
return 1
