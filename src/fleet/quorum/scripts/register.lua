-- digest, life in milliseconds, random number
redis.call('ZREMRANGEBYSCORE', prefix .. 'configs', '-inf', text(now))
redis.call('ZADD', prefix .. 'configs', text(now + ARGV[2]), ARGV[1])
birth(ARGV[3])
return others(ARGV[1])
