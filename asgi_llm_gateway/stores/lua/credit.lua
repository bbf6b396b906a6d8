-- KEYS: an account. ARGV: the credit that is archived. Where the account is being read from there, that has to begin again.
if redis.call('HEXISTS', KEYS[1], 'e') == 1 then
  redis.call('HSET', KEYS[1], 'c', ARGV[1])
  redis.call('HDEL', KEYS[1], 'mark')
else
  redis.call('DEL', KEYS[1])
end
return 1
