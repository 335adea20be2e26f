-- Removes a record that has ended, on an operator's word: id, and the holder that asks.
-- Returns 0 where there is none, 1 where it is gone, 2 where it runs; and the subject of a record that was buried.
local id, own = ARGV[2], ARGV[3]
local r, buried = read(id), false
if not r or r.s == '4' then
  return { 0, false }
end
if is_dead(r, own) then
  buried = subject(id)
elseif r.s == '0' then
  return { 2, false }
end
forget(id, r.t)
return { 1, buried }
