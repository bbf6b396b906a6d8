-- What the scripts share. It goes before each of them, below KEEP_LAPSED, KEEP_ENDED and KEEP_ACCOUNT, in seconds.
--
-- The keys of a tenant all begin with BASE = prefix:{tenant}: and the braces put them into one slot of a cluster. So a
-- script may also touch keys of the tenant that its caller cannot know and declare: those of holds that lapsed.
--   BASE a:ACCOUNT:WINDOW  hash: s spent, h held, ts and th the same in tokens, c credit, e its epoch: another each time that it is
--                         filled anew, r the run of the server in which it was read from the archive last
--   BASE h:HOLD            hash: m money, t tokens, x expires, s spent when taken, a accounts, e their epochs, b about;
--                          of one that lapsed also l, cm and ct (what was charged); of one that ended only d (see ended)
--   BASE x                 sorted set: the holds that run, by when they lapse
--   BASE o                 stream: settled calls, in Redis until the archive has them
--   BASE l                 who empties the stream at present

-- Amounts are decimal text of up to 62 bits, and Lua's numbers are doubles, exact to 53 (9 million USD in nano-USD):
-- long ones are added in two halves, whole billions and the rest.
local function halves(text)
  local sign, digits = string.match(text, '^(-?)(%d+)$')
  local high, low = tonumber(string.sub(digits, 1, -10)) or 0, tonumber(string.sub(digits, -9))
  if sign == '-' then return -high, -low end
  return high, low
end

-- a + sign * b, in text
local function add(a, b, sign)
  if #a < 16 and #b < 16 then return string.format('%.0f', a + sign * b) end
  local ahigh, alow = halves(a)
  local bhigh, blow = halves(b)
  local high, low = ahigh + sign * bhigh, alow + sign * blow
  local carry = math.floor(low / 1e9)
  high, low = high + carry, low - carry * 1e9
  if high < 0 and low > 0 then high, low = high + 1, low - 1e9 end  -- both halves have the sign of the whole
  if high == 0 then return string.format('%.0f', low + 0) end
  return string.format('%.0f%09.0f', high, math.abs(low))
end

local function less(a, b)
  return tonumber(add(a, b, -1)) < 0  -- text of an integer keeps its sign, also where the double is not exact
end

-- What a limit leaves on an account, given as HMGET e s h ts th c
local function money_left(most, account)
  return add(add(add(most, account[6], 1), account[2], -1), account[3], -1)
end
local function tokens_left(most, account)
  return add(add(most, account[4], -1), account[5], -1)
end

local function words(text)
  local found = {}
  for word in string.gmatch(text, '%S+') do found[#found + 1] = word end
  return found
end

-- Take from each account what it holds for a call, and add what the call cost. `epochs` are those of the accounts when
-- the hold was taken: one that was lost since, and read from the archive again, holds nothing for it.
local function book(base, accounts, epochs, held, tokens_held, cost, tokens)
  epochs = words(epochs)
  for i, name in ipairs(words(accounts)) do
    local key = base .. 'a:' .. name
    local account = redis.call('HMGET', key, 'e', 's', 'h', 'ts', 'th')
    if account[1] then
      local same = account[1] == epochs[i]
      redis.call('HSET', key, 's', add(account[2], cost, 1), 'ts', add(account[4], tokens, 1),
        'h', same and add(account[3], held, -1) or account[3], 'th', same and add(account[5], tokens_held, -1) or account[5])
      -- A late settle takes back what the lapse was charged. Who has read the archive without it is to read again.
      if less(cost, '0') or less(tokens, '0') then redis.call('HDEL', key, 'mark') end
    else
      -- The cost comes back with what is archived. Who has read the archive without it, to fill the account, is to read again.
      redis.call('DEL', key)
    end
  end
end

-- A call is over: whoever ended it hears the same if it asks again (its answer was lost), all others that there is no hold.
-- Also the hold itself, sent once more over a connection that was thought dead, must not come back to life.
local function ended(key, nonce)
  redis.call('DEL', key)
  redis.call('HSET', key, 'd', nonce)
  redis.call('EXPIRE', key, KEEP_ENDED)
end

local function push(outbox, id, accounts, money, tokens, expires, spent, overdraft, kind, what)
  redis.call('XADD', outbox, '*', 'i', id, 'a', accounts, 'm', money, 't', tokens, 'x', expires, 's', spent,
    'o', overdraft, kind, what)
end

-- End the holds that nobody settled: charge them whole, or let them go. They are kept for a settle that comes late.
local function lapse(base, now, most, charge)
  local ids = redis.call('ZRANGEBYSCORE', base .. 'x', '-inf', now, 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    local key = base .. 'h:' .. id
    local hold = redis.call('HMGET', key, 'm', 't', 'x', 's', 'a', 'e', 'b')
    redis.call('ZREM', base .. 'x', id)
    if hold[1] then
      if charge == '1' then
        book(base, hold[5], hold[6], hold[1], hold[2], hold[1], hold[2])
        redis.call('HSET', key, 'l', '1', 'cm', hold[1], 'ct', hold[2])
        push(base .. 'o', id, hold[5], hold[1], hold[2], hold[3], hold[4], '0', 'b', hold[7])
      else
        book(base, hold[5], hold[6], hold[1], hold[2], '0', '0')
        redis.call('HSET', key, 'l', '1')
      end
      redis.call('EXPIRE', key, KEEP_LAPSED)
    end
  end
  return #ids
end
