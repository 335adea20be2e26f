-- Shows that a process lives: its number and its name. One that is silent for a day is forgotten.
redis.call('SET', prefix .. 'h:' .. ARGV[2], int(now) .. ' ' .. ARGV[3], 'PX', 86400000)
return 1
