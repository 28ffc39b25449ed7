-- Take numbers from a sequence. Numbers have up to 19 digits, more than Lua's can hold: they stay texts.
-- KEYS: 1 sequences; in a cluster 2 who counted last, 3 the guard (see commit.lua). ARGV: 1 name, 2 how many, 3 the least.
local GAP = 10000000 -- numbers left out when another node counts: it may not have received the last that were taken
local function less(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end
if KEYS[2] then
  local node = redis.call('CLUSTER', 'MYID')
  local last = redis.call('HGET', KEYS[2], ARGV[1])
  if last ~= node then
    if last then
      redis.pcall('HINCRBY', KEYS[1], ARGV[1], GAP) -- fails where the sequence is at its end
    end
    redis.call('HSET', KEYS[2], ARGV[1], node)
  end
end
local before = redis.call('HGET', KEYS[1], ARGV[1])
local first = before or '1'
if less(first, ARGV[3]) then
  first = ARGV[3]
end
redis.call('HSET', KEYS[1], ARGV[1], first)
local taken = redis.pcall('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
if type(taken) == 'table' and taken.err then
  if before then
    redis.call('HSET', KEYS[1], ARGV[1], before)
  else
    redis.call('HDEL', KEYS[1], ARGV[1])
  end
  return false
end
return first
