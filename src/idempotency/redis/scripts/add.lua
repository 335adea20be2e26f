-- Adds a record of another store, where there is none or one that says less: id, state, token, fingerprint, created, expires, lease, the
-- subject's five texts, the dead token or nothing, and with a result its status, fields, body and trailers.
local id, key = ARGV[2], prefix .. 'r:' .. ARGV[2]
local there = read(id)
local says_less = there and (there.s == '4' or is_over(there) or (there.s == '3' and ARGV[3] ~= '3' and there.t == ARGV[4]))
if there and not says_less then
  return 0
end
if there then
  forget(id, there.t)
end
local state, token, expires = ARGV[3], ARGV[4], tonumber(ARGV[7])
redis.call('HSET', key, 's', state, 't', token, 'f', ARGV[5], 'c', ARGV[6], 'e', ARGV[7], 'l', ARGV[8],
  'n', ARGV[9], 'm', ARGV[10], 'a', ARGV[11], 'p', ARGV[12], 'k', ARGV[13])
if ARGV[14] ~= '' then
  redis.call('HSET', key, 'd', ARGV[14])
end
if ARGV[15] then
  redis.call('HSET', key, 'st', ARGV[15], 'fi', ARGV[16], 'bo', ARGV[17], 'tr', ARGV[18])
end
enter(id, state, token, expires, tonumber(ARGV[8]))
return 1
