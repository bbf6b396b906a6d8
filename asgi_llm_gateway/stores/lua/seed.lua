-- KEYS: an account. ARGV: the mark, what is archived (spent, tokens spent, credit), the server's run.
local account = redis.call('HMGET', KEYS[1], 'mark', 'e', 's', 'ts')
if account[1] ~= ARGV[1] then return 0 end
if account[2] then
  -- An account from before the server began again: what it lacks is archived, and what is not archived yet, it has.
  local spent, tokens = account[3], account[4]
  if less(spent, ARGV[2]) then spent = ARGV[2] end
  if less(tokens, ARGV[3]) then tokens = ARGV[3] end
  redis.call('HSET', KEYS[1], 's', spent, 'ts', tokens, 'c', ARGV[4], 'r', ARGV[5])
  redis.call('HDEL', KEYS[1], 'mark')
  return 1
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'e', ARGV[1], 's', ARGV[2], 'h', '0', 'ts', ARGV[3], 'th', '0', 'c', ARGV[4], 'r', ARGV[5])
if string.sub(KEYS[1], -2) ~= ':0' then redis.call('EXPIRE', KEYS[1], KEEP_ACCOUNT) end
return 1
