-- The end of a run: id, token, state, ttl; and with a result its status, fields, body and trailers.
-- Returns 1 where the record was the run's.
local id, token, state, ttl = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local key, r = prefix .. 'r:' .. id, read(id)
if not r or not (is_open(r, token) or (r.t == token and r.s == state)) then
  return 0
end
redis.call('HSET', key, 's', state, 'e', int(now + ttl), 'u', micros)
redis.call('HDEL', key, 'st', 'fi', 'bo', 'tr')
if ARGV[6] then
  redis.call('HSET', key, 'st', ARGV[6], 'fi', ARGV[7], 'bo', ARGV[8], 'tr', ARGV[9])
end
enter(id, state, token, now + ttl, r.l)
return 1
