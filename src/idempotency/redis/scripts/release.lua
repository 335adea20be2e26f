-- The end of a claim that does not count as sent: id, token, ttl, and the trace that it leaves: plain (none),
-- entombed or retaken. Returns 1 where the record was the claim's.
local id, token, ttl, way = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local key, r = prefix .. 'r:' .. id, read(id)
local is_mine = r and is_open(r, token)

local function entomb(fingerprint)
  if r then
    forget(id, r.t)
  end
  local expires = now + 60000
  redis.call('HSET', key, 's', '4', 't', token, 'f', fingerprint, 'c', int(now), 'e', int(expires), 'l', '0')
  enter(id, '4', token, expires, 0)
end

-- A tombstone never takes the place of another token's record.
if not r or (is_over(r) and not is_mine) then
  if way ~= 'plain' then
    entomb(string.rep('\0', 32))
  end
elseif way == 'plain' then
  if is_mine then
    forget(id, r.t)
  end
elseif way == 'entombed' then
  if is_mine or (r.t == token and r.s == '4') then
    entomb(r.f)
  end
elseif is_mine then
  redis.call('HSET', key, 's', '3', 'e', int(now + ttl), 'd', token)
  enter(id, '3', r.t, now + ttl, r.l)
elseif r.s == '3' then
  redis.call('HSET', key, 'd', token)
end
return is_mine and 1 or 0
