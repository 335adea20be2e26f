local prefix = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end
-- The birth of this memory of the node: a random number, and when it was made.
local function birth(seed)
  local known = redis.call('GET', prefix .. 'birth')
  if not known then
    known = seed .. ':' .. text(now)
    redis.call('SET', prefix .. 'birth', known)
  end
  return known
end
-- The configurations of proxies that are alive, beside one.
local function others(own)
  local count = 0
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'configs', '(' .. text(now), '+inf')) do
    if digest ~= own then count = count + 1 end
  end
  return count
end
