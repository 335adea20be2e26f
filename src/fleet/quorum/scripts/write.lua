-- flags, write, life of its mark in milliseconds, digest, random number, slots
local flags, write, life, seed = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
if string.find(flags, 'd') then
  local live = redis.call('ZSCORE', prefix .. 'configs', ARGV[4])
  if not live or tonumber(live) <= now then
    return redis.error_reply('UNREGISTERED the configuration of this proxy is not known here')
  end
end
for place = 6, #ARGV do
  local slot, marks = ARGV[place], prefix .. 'marks:' .. ARGV[place]
  if string.find(flags, 's') then redis.call('HSET', prefix .. 'stamps', slot, seed) end
  if string.find(flags, 'u') then redis.call('ZREM', marks, write) end
  if string.find(flags, 'm') then
    redis.call('ZREMRANGEBYSCORE', marks, '-inf', text(now))
    redis.call('ZADD', marks, text(now + life), write)
    local last = redis.call('ZREVRANGE', marks, 0, 0, 'WITHSCORES')
    redis.call('PEXPIREAT', marks, text(tonumber(last[2]) + 1000))
  end
end
return 1
