-- Some of the running records of a process: the process, and how many. Returns their identities and tokens.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'w:' .. ARGV[2], 0, ARGV[3] - 1)) do
  found[#found + 1] = { id, redis.call('HGET', prefix .. 'r:' .. id, 't') }
end
return found
