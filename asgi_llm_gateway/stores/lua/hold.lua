-- KEYS: the hold, the expiries, the accounts. ARGV: now, when it lapses, least money and tokens, wanted money and tokens,
-- whether lapsed holds are charged, about, the server's run ('': not known), and for each account the most money and tokens
-- ('' is no limit).
local base = string.sub(KEYS[2], 1, -2)
lapse(base, ARGV[1], 20, ARGV[7])  -- a few at a time: the holds of a process that died stand in nobody's way

local known = redis.call('HMGET', KEYS[1], 'm', 't', 'x', 's', 'd')
if known[5] then return {'ended'} end
if known[1] then return {'held', known[1], known[2], known[3], known[4]} end

local money, tokens = ARGV[5], ARGV[6]
local found, names, epochs = {}, {}, {}
for i = 3, #KEYS do
  local account = redis.call('HMGET', KEYS[i], 'e', 's', 'h', 'ts', 'th', 'c', 'r')
  -- An account that is not here is never taken for zero, and one that may be out of date not for true: see mark.lua
  if not account[1] or (ARGV[9] ~= '' and account[7] ~= ARGV[9]) then return {'unknown', i - 3} end
  local most, most_tokens = ARGV[4 + 2 * i], ARGV[5 + 2 * i]
  if most ~= '' then
    local room = money_left(most, account)
    if less(room, money) then
      if less(room, ARGV[3]) or less(room, '0') then
        return {'refused', i - 3, 'money', account[2], account[3], account[6]}
      end
      money = room
    end
  end
  if most_tokens ~= '' then
    local room = tokens_left(most_tokens, account)
    if less(room, tokens) then
      if less(room, ARGV[4]) or less(room, '0') then
        return {'refused', i - 3, 'tokens', account[4], account[5], '0'}
      end
      tokens = room
    end
  end
  found[i], epochs[i - 2], names[i - 2] = account, account[1], string.sub(KEYS[i], #base + 3)
end

for i = 3, #KEYS do
  redis.call('HSET', KEYS[i], 'h', add(found[i][3], money, 1), 'th', add(found[i][5], tokens, 1))
  if string.sub(KEYS[i], -2) ~= ':0' then redis.call('EXPIRE', KEYS[i], KEEP_ACCOUNT) end  -- a lifetime stays
end
local spent = found[3] and found[3][2] or '0'
redis.call('HSET', KEYS[1], 'm', money, 't', tokens, 'x', ARGV[2], 's', spent, 'a', table.concat(names, ' '),
  'e', table.concat(epochs, ' '), 'b', ARGV[8])
redis.call('ZADD', KEYS[2], ARGV[2], string.sub(KEYS[1], #base + 3))
return {'held', money, tokens, ARGV[2], spent}
