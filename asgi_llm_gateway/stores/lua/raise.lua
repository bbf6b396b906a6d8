-- KEYS: the hold, its accounts. ARGV: BASE, money, tokens, and for each account the most money and tokens ('' is no limit).
local hold = redis.call('HMGET', KEYS[1], 'm', 't', 'x', 's', 'l', 'e')
if not hold[1] or hold[5] then return {'ended'} end
local more, more_tokens = add(ARGV[2], hold[1], -1), add(ARGV[3], hold[2], -1)
if less(more, '0') then more = '0' end
if less(more_tokens, '0') then more_tokens = '0' end
if more == '0' and more_tokens == '0' then return {'held', hold[1], hold[2], hold[3], hold[4]} end

local found, before, epochs = {}, words(hold[6]), {}
for i = 2, #KEYS do
  local account = redis.call('HMGET', KEYS[i], 'e', 's', 'h', 'ts', 'th', 'c')
  if not account[1] then return {'unknown', i - 2} end
  local most, most_tokens = ARGV[2 * i], ARGV[2 * i + 1]
  if most ~= '' and more ~= '0' and less(money_left(most, account), more) then
    return {'refused', i - 2, 'money', account[2], account[3], account[6]}
  end
  if most_tokens ~= '' and more_tokens ~= '0' and less(tokens_left(most_tokens, account), more_tokens) then
    return {'refused', i - 2, 'tokens', account[4], account[5], '0'}
  end
  found[i], epochs[i - 1] = account, account[1]
end

local money, tokens = add(hold[1], more, 1), add(hold[2], more_tokens, 1)
for i = 2, #KEYS do
  local same = epochs[i - 1] == before[i - 1]  -- else the account was lost, and held nothing for the call any more
  redis.call('HSET', KEYS[i], 'h', add(found[i][3], same and more or money, 1),
    'th', add(found[i][5], same and more_tokens or tokens, 1))
end
redis.call('HSET', KEYS[1], 'm', money, 't', tokens, 'e', table.concat(epochs, ' '))
return {'held', money, tokens, hold[3], hold[4]}
