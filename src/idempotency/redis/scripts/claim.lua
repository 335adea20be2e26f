-- A claim: id, token, fingerprint, retake, lease, ttl, the subject's five texts, and the name of the process.
-- One that is made renews the heartbeat of its process; one that finds a record writes nothing.
-- Returns 0 and the record where it stays, 1 where the claim is the first, 2 where it takes the place of an unknown
-- outcome, 3 where it was released before; and the subject of a record that was buried on the way.
local id, token, fingerprint, retake = ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local lease, ttl = tonumber(ARGV[6]), tonumber(ARGV[7])
local key, r, buried = prefix .. 'r:' .. id, read(id), false
if r and is_dead(r, holder(token)) then
  bury(id, r)
  buried = subject(id)
end

local function live()
  -- Once a millisecond for all claims of a batch.
  if silence(holder(token)) ~= 0 then
    beat(holder(token), ARGV[13])
  end
end

local function take(dead)
  redis.call('DEL', key)
  redis.call('HSET', key, 's', '0', 't', token, 'f', fingerprint, 'c', int(now), 'e', int(now + ttl), 'l', int(lease),
    'n', ARGV[8], 'm', ARGV[9], 'a', ARGV[10], 'p', ARGV[11], 'k', ARGV[12])
  if dead then
    redis.call('HSET', key, 'd', dead)
  end
  enter(id, '0', token, now + ttl, lease)
  live()
end

if not r or is_over(r) then
  take(nil)
  return { 1, buried }
end
if r.d ~= token then
  if is_open(r, token) then
    -- Sent again, it is written again: only a write waits for the replicas.
    redis.call('HSET', key, 's', '0', 'e', int(r.c + ttl))
    enter(id, '0', token, r.c + ttl, r.l)
    live()
    return { retake and 2 or 1, buried }
  end
  if r.s == '4' and r.t ~= token then
    take(nil)
    return { 1, buried }
  end
  if retake and r.s == '3' and r.f == fingerprint then
    take(r.d)
    return { 2, buried }
  end
end
if r.s == '4' then
  return { 3, buried }
end
return { 0, buried, whole(id) }
