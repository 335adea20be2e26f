-- Removes expired records, and buries those of dead processes: the holder that asks, and how many of each.
-- Returns how many have expired, how many records there are, and the identities and subjects of those buried.
local own, limit = ARGV[2], tonumber(ARGV[3])
local due = redis.call('ZRANGEBYSCORE', ended, '-inf', int(now), 'LIMIT', 0, limit)
for _, id in ipairs(due) do
  forget(id, redis.call('HGET', prefix .. 'r:' .. id, 't') or own)
end
local buried = {}
for _, process in ipairs(redis.call('SMEMBERS', prefix .. 'holders')) do
  local running = prefix .. 'w:' .. process
  if redis.call('EXISTS', running) == 0 then
    redis.call('SREM', prefix .. 'holders', process)
  elseif process ~= own then
    local quiet = silence(process)
    local silent_for = quiet and int(quiet) or '+inf'
    local found = redis.call('ZRANGEBYSCORE', running, '-inf', silent_for, 'LIMIT', 0, limit - #buried)
    for _, id in ipairs(found) do
      local r = read(id)
      if r and r.s == '0' then
        bury(id, r)
        buried[#buried + 1] = { id, subject(id) }
      else
        redis.call('ZREM', running, id)
      end
    end
  end
end
return { #due, redis.call('ZCARD', ids), buried }
