-- Take all that a call wants of its limits, or nothing.
-- KEYS: a log for each window, then a set of leases for each limit of running calls.
-- ARGV: window, step and lease in microseconds, entries kept apart, windows, the process, its state, the lease's id; then of
-- each window the limit, the amount (0 only looks), what the process knows of itself, and what of it nobody was told; of each set the limit.
-- Gives: 1 or 0; of each window its sum, microseconds until it is empty and until the call would be admitted (-1: never), the
-- number of the entry and the log's life; of each set how many calls run.
local window, step, lease, exact = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local windows, process, state, id = tonumber(ARGV[5]), 'w' .. ARGV[6], ARGV[7], ARGV[8]
local now, admitted, logs, sets = micros(), 1, {}, {}

for i = 1, windows do
  local at = 8 + 4 * (i - 1)
  local log = open(KEYS[i], now, window)
  log.limit, log.wanted = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  -- A log that has no word of this process yet (the server lost its data) is told all, one that has an old word what
  -- happened since while the server was away.
  local told, more = redis.call('HGET', log.key, process), 0
  if not told then more = tonumber(ARGV[at + 3]) elseif told ~= state then more = tonumber(ARGV[at + 4]) end
  if more > 0 then push(log, more, step, exact) end
  log.told = told ~= state
  if log.wanted > 0 and log.sum + log.wanted > log.limit then admitted = 0 end
  logs[i] = log
end
for i = windows + 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  sets[i] = redis.call('ZCARD', KEYS[i])
  if sets[i] >= tonumber(ARGV[8 + 4 * windows + i - windows]) then admitted = 0 end
end

local reply = {admitted}
for i = 1, windows do
  local log, retry = logs[i], 0
  local excess = log.sum + log.wanted - log.limit
  if admitted == 1 then
    if log.wanted > 0 then push(log, log.wanted, step, exact) end
  elseif excess > 0 and log.wanted > 0 then
    retry = -1
    if log.wanted <= log.limit then
      local number = log.head
      while number < log.tail and excess > 0 do
        local last, _, amount = entry_of(log.key, number)
        excess, number, retry = excess - amount, number + 1, math.max(last + window - log.now, 1)
      end
    end
  end
  if log.tail > log.head then
    if log.told then redis.call('HSET', log.key, process, state) end
    keep(log, window)
  end
  local reset = 0
  if log.last then reset = log.last + window - log.now end
  reply[#reply + 1] = int(log.sum)
  reply[#reply + 1] = int(reset)
  reply[#reply + 1] = int(retry)
  reply[#reply + 1] = int(log.tail - 1)
  reply[#reply + 1] = log.life
end
for i = windows + 1, #KEYS do
  if admitted == 1 then
    redis.call('ZADD', KEYS[i], int(now + lease), id)
    redis.call('PEXPIRE', KEYS[i], int(lease / 1000 + 1000))
  end
  reply[#reply + 1] = int(sets[i] + admitted)
end
return reply
