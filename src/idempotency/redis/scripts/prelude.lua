-- What every script begins with. KEYS[1] is the key of the store's identity; all other keys begin as it does.
-- ARGV[1] is the identity that the connection was made to. The server's clock decides.
--
-- <prefix>store          the version and the identity of the store
-- <prefix>r:<id>         a record, a hash: s state, t token, f fingerprint, c created, e expires, l lease, d dead token,
--                        u the time of its result in microseconds,
--                        n namespace, m method, a authority, p path, k key, st status, fi fields, bo body, tr trailers
-- <prefix>ids            the identities of all records but tombstones, in order: those of a key stand together
-- <prefix>ended          the identities of ended records and tombstones, by their expiry
-- <prefix>w:<holder>     the identities of the running records of a process, by their lease
-- <prefix>holders        the processes with such records
-- <prefix>h:<holder>     the last heartbeat of a process, and its name
-- <prefix>moves          how often proxies have moved to another server, and the history of writes of the last one
local prefix = string.sub(KEYS[1], 1, -6)
local ids, ended = prefix .. 'ids', prefix .. 'ended'
-- Redis ends an expired record itself after this time, where no proxy does; in milliseconds.
local spare = 3600000

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FORGOT the store has lost its identity')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function int(number)
  return string.format('%.0f', number)
end

local micros = int(time[1] * 1000000 + time[2])

local function read(id)
  local v = redis.call('HMGET', prefix .. 'r:' .. id, 's', 't', 'f', 'c', 'e', 'd', 'l')
  if not v[1] then
    return nil
  end
  return { s = v[1], t = v[2], f = v[3], c = tonumber(v[4]), e = tonumber(v[5]), d = v[6], l = tonumber(v[7]) }
end

-- The record with its result, as callers get it.
local function whole(id)
  return redis.call('HMGET', prefix .. 'r:' .. id, 's', 't', 'f', 'c', 'e', 'd', 'st', 'fi', 'bo', 'tr', 'u')
end

local function subject(id)
  return redis.call('HMGET', prefix .. 'r:' .. id, 'n', 'm', 'a', 'p', 'k')
end

local function holder(token)
  return string.sub(token, 1, 16)
end

local function is_over(r)
  return r.s ~= '0' and r.e <= now
end

local function is_open(r, token)
  return r.t == token and (r.s == '0' or r.s == '3') and r.d ~= token
end

-- Enters a record that was written into the indexes. A running record has no expiry.
local function enter(id, state, token, expires, lease)
  local key, running = prefix .. 'r:' .. id, prefix .. 'w:' .. holder(token)
  if state == '0' then
    redis.call('PERSIST', key)
    redis.call('ZREM', ended, id)
    redis.call('ZADD', running, int(lease), id)
    redis.call('SADD', prefix .. 'holders', holder(token))
  else
    redis.call('PEXPIREAT', key, int(expires + spare))
    redis.call('ZREM', running, id)
    redis.call('ZADD', ended, int(expires), id)
  end
  if state == '4' then
    redis.call('ZREM', ids, id)
  else
    redis.call('ZADD', ids, 0, id)
  end
end

local function forget(id, token)
  redis.call('DEL', prefix .. 'r:' .. id)
  redis.call('ZREM', ids, id)
  redis.call('ZREM', ended, id)
  redis.call('ZREM', prefix .. 'w:' .. holder(token), id)
end

-- Makes a running record unknown. Its time begins now, however long it ran.
local function bury(id, r)
  r.s, r.e = '3', math.max(r.e, now + r.e - r.c)
  redis.call('HSET', prefix .. 'r:' .. id, 's', r.s, 'e', int(r.e))
  enter(id, r.s, r.t, r.e, r.l)
end

-- For how long a process has been silent; nothing where it is not known.
local function silence(process)
  local beat = redis.call('GET', prefix .. 'h:' .. process)
  return beat and now - tonumber(string.match(beat, '^%d+'))
end

-- Shows that a process lives: its number and its name. One that is silent for a day is forgotten.
local function beat(process, name)
  redis.call('SET', prefix .. 'h:' .. process, int(now) .. ' ' .. name, 'PX', 86400000)
end

local function is_dead(r, own)
  if r.s ~= '0' or holder(r.t) == own then
    return false
  end
  local quiet = silence(holder(r.t))
  return not quiet or quiet >= r.l
end
