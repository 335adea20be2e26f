-- wrk's part: asks for keys as the mix says, and writes a line for every answer:
-- milliseconds, status, key, node, what the node's cache did.
-- Arguments: mix (uniform | zipf), number of keys, exponent, prefix, seed, file.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } timespec;
  int clock_gettime(int clock, timespec *now);
]]
local now = ffi.new("timespec")

local gets, chances, count, prefix, seed, out = {}, nil, 0, "/", "0", nil
local sent = 0

function init(args)
  local mix, exponent = args[1], tonumber(args[3])
  count, prefix, seed = tonumber(args[2]), args[4], args[5]
  math.randomseed(tonumber(seed) + 1)
  for key = 1, count do gets[key] = wrk.format("GET", prefix .. (key - 1)) end
  if mix == "zipf" then
    local sum = 0
    chances = {}
    for key = 1, count do
      sum = sum + 1 / key ^ exponent
      chances[key] = sum
    end
    for key = 1, count do chances[key] = chances[key] / sum end
  end
  out = assert(io.open(args[6], "w"))
  out:setvbuf("full", 65536)
end

local function any_key()
  local chance = math.random()
  if not chances then return math.floor(chance * count) + 1 end
  local low, high = 1, count
  while low < high do
    local middle = math.floor((low + high) / 2)
    if chances[middle] < chance then low = middle + 1 else high = middle end
  end
  return low
end

function request()
  sent = sent + 1
  -- One in fifty is a payment, each with a number of its own.
  if sent % 50 == 0 then
    return wrk.format("POST", "/pay/" .. seed .. "-" .. sent, nil, "amount=1")
  end
  return gets[any_key()]
end

function response(status, headers)
  ffi.C.clock_gettime(0, now)
  local milliseconds = tonumber(now.seconds) * 1000 + math.floor(tonumber(now.nanoseconds) / 1e6)
  out:write(string.format("%d %d %s %s %s\n", milliseconds, status, headers["x-key"] or "-",
    headers["x-node"] or "-", headers["x-cache"] or "-"))
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "p50_ms": %.2f, "p99_ms": %.2f, "max_ms": %.1f, "bad_statuses": %d, "socket_errors": %d}\n',
    summary.requests, latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000, e.status,
    e.connect + e.read + e.write + e.timeout))
end
