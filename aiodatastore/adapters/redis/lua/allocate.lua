-- Take numbers from a sequence. Numbers have up to 19 digits, more than Lua's can hold: they stay texts.
-- KEYS: 1 sequences. ARGV: 1 name, 2 how many, 3 the least.
local function less(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
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
