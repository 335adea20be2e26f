-- The records of a key: the first and the last identity, the key, and how many. Returns the time, and the records.
local found = { int(now) }
for _, id in ipairs(redis.call('ZRANGEBYLEX', ids, '[' .. ARGV[2], '[' .. ARGV[3], 'LIMIT', 0, ARGV[5])) do
  local v = redis.call('HMGET', prefix .. 'r:' .. id, 's', 't', 'f', 'c', 'e', 'd', 'st', 'n', 'm', 'a', 'p', 'k')
  if v[1] and v[12] == ARGV[4] then
    local beat = redis.call('GET', prefix .. 'h:' .. holder(v[2]))
    found[#found + 1] = { id, v, beat and string.match(beat, '^%d+ (.*)$') }
  end
end
return found
