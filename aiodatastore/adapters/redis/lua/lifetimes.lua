-- How long entities have to live.
--
-- KEYS: 1 expiries, 2 entity keys. ARGV: escaped keys. Returns of each milliseconds, -1: it stays, -2: there is none.

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {}
for i = 1, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at then
    out[i] = math.max(tonumber(at) - now, 0)
    if out[i] == 0 then
      out[i] = -2
    end
  elseif redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    out[i] = -1
  else
    out[i] = -2
  end
end
return out
