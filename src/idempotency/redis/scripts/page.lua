-- The records after an identity, in order: where to begin, how many, and after how many bytes of results to stop.
-- Returns records with all that belongs to them.
local found, start, bytes = {}, ARGV[2], 0
repeat
  local some = redis.call('ZRANGEBYLEX', ids, start, '+', 'LIMIT', 0, ARGV[3])
  for _, id in ipairs(some) do
    local v = redis.call('HMGET', prefix .. 'r:' .. id, 's', 't', 'f', 'c', 'e', 'd', 'st', 'fi', 'bo', 'tr',
      'l', 'n', 'm', 'a', 'p', 'k')
    -- One that the server has let expire is still in the index.
    if v[1] then
      found[#found + 1] = { id, v }
      bytes = bytes + #(v[9] or '')
      if bytes > tonumber(ARGV[4]) then
        return found
      end
    end
    start = '(' .. id
  end
until #found > 0 or #some == 0
return found
