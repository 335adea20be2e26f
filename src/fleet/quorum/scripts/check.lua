-- digest, random number, slots: the stamp of each, made where there is none, and whether it is marked
local reply = { text(now), birth(ARGV[2]), others(ARGV[1]) }
for place = 3, #ARGV do
  local slot = ARGV[place]
  local stamp = redis.call('HGET', prefix .. 'stamps', slot)
  if not stamp then
    stamp = ARGV[2]
    redis.call('HSET', prefix .. 'stamps', slot, stamp)
  end
  local last = redis.call('ZREVRANGE', prefix .. 'marks:' .. slot, 0, 0, 'WITHSCORES')
  reply[#reply + 1] = stamp
  reply[#reply + 1] = (last[2] and tonumber(last[2]) > now) and 1 or 0
end
return reply
