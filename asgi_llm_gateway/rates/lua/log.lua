-- The log of one sliding window, as rates/windows.py keeps it, in a hash: h and t are the numbers of the first entry and of
-- the next one, s is the sum, g names this life of the log; a number holds "last hit:first hit:amount". Times are
-- microseconds of the server. "w" and a process's name holds the state of things which that process has told.

local function micros()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function int(number)
  return string.format('%.0f', number)
end

local function entry_of(key, number)
  local last, first, amount = string.match(redis.call('HGET', key, int(number)), '(%d+):(%d+):(%d+)')
  return tonumber(last), tonumber(first), tonumber(amount)
end

local function open(key, now, window)
  local found = redis.call('HMGET', key, 'h', 't', 's', 'g')
  local log = {key = key, head = 0, tail = 0, sum = 0, now = now}
  if found[1] then
    log.head, log.tail, log.sum, log.life = tonumber(found[1]), tonumber(found[2]), tonumber(found[3]), found[4]
    if log.tail > log.head then
      -- A clock that was set back must not let anything stay for longer than its window.
      log.last, log.first, log.amount = entry_of(key, log.tail - 1)
      if log.last > now then log.now = log.last end
    end
    while log.head < log.tail do
      local last, _, amount = entry_of(key, log.head)
      if last > log.now - window then break end
      redis.call('HDEL', key, int(log.head))
      log.head, log.sum = log.head + 1, log.sum - amount
    end
  end
  if log.head == log.tail then
    log.last = nil
    -- An empty log keeps the words of the processes, unless it has those of very many that are long gone.
    if log.life and redis.call('HLEN', key) > 1000 then
      redis.call('DEL', key)
      log.head, log.tail, log.sum, log.life = 0, 0, 0, nil
    end
  end
  log.life = log.life or int(now)
  return log
end

local function push(log, amount, step, exact)
  if log.last and log.tail - log.head >= exact and log.now - log.first < step then
    log.amount, log.tail = log.amount + amount, log.tail - 1
  else
    log.first, log.amount = log.now, amount
  end
  log.last, log.sum = log.now, log.sum + amount
  redis.call('HSET', log.key, int(log.tail), int(log.last) .. ':' .. int(log.first) .. ':' .. int(log.amount))
  log.tail = log.tail + 1
end

local function keep(log, window)
  redis.call('HSET', log.key, 'h', int(log.head), 't', int(log.tail), 's', int(log.sum), 'g', log.life)
  redis.call('PEXPIRE', log.key, int(window / 1000 + 1000))
end
