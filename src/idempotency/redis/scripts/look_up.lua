-- The record of an identity, unless its time is up: id. Returns nothing where there is none.
local r = read(ARGV[2])
if not r or r.s == '4' or is_over(r) then
  return false
end
return whole(ARGV[2])
