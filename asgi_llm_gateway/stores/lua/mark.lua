-- KEYS: an account, the outbox. ARGV: a nonce, the account's name, the server's run.
-- The first of two steps to read an account from the archive that is not here (new, or lost), or not known to be up to date
-- (the server began again, maybe with what it had written to disk some time ago; or this is a replica that lagged behind).
-- Of an account that is not here nothing may wait in the outbox, and the mark goes where something is booked meanwhile: so
-- what the archive says between mark.lua and seed.lua is all there is. Of one that is here, no settle may wait (nor be booked
-- meanwhile) that takes back what a lapse was charged: the archive would say more than was spent.
local account = redis.call('HMGET', KEYS[1], 'e', 'mark', 'r')
if account[1] and (ARGV[3] == '' or account[3] == ARGV[3]) then return {'there'} end
if account[2] then return {'marked', account[2]} end
local waiting = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1000)
if #waiting == 1000 then return {'behind'} end
for _, entry in ipairs(waiting) do
  local late = entry[2][15] == 'R'
  if (late or not account[1]) and string.find(' ' .. entry[2][4] .. ' ', ' ' .. ARGV[2] .. ' ', 1, true) then
    return {'behind'}
  end
end
redis.call('HSET', KEYS[1], 'mark', ARGV[1])
if not account[1] then redis.call('EXPIRE', KEYS[1], 60) end
return {'marked', ARGV[1]}
