-- A call has ended: correct its windows to what it took, and give its places back.
-- KEYS: a log for each window that is to be corrected, then the sets of leases.
-- ARGV: window and step in microseconds, entries kept apart, windows, the lease's id; then of each window the number of the
-- entry, the log's life, and how much more (or less, below 0) the call took.
local window, step, exact = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local windows, now = tonumber(ARGV[4]), micros()
for i = 1, windows do
  local at = 5 + 3 * (i - 1)
  local number, life, change = tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  local log = open(KEYS[i], now, window)
  if change > 0 then
    push(log, change, step, exact)
  elseif log.life == life and number >= log.head and number < log.tail then
    local last, first, amount = entry_of(log.key, number)
    -- Two processes may both have put what they know into an entry: it never holds less than nothing.
    change = math.max(change, -amount)
    redis.call('HSET', log.key, int(number), int(last) .. ':' .. int(first) .. ':' .. int(amount + change))
    log.sum = log.sum + change
  end
  if log.tail > log.head then keep(log, window) end
end
for i = windows + 1, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[5])
end
return 1
