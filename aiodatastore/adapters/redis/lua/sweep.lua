-- Remove entities whose time has come, with their index rows: a commit of its own.
--
-- Which entities these are is not known before: their keys are not declared, but have the prefix (and so the hash tag)
-- of those that are. The commit's script never sweeps.
--
-- KEYS as of commit.lua up to 7; in a cluster the guard. ARGV: 1 what entity names begin with, 2 the most to remove,
-- 3 'c' in a cluster.
-- Returns how many were removed, and 1 if more are due.

local VERSION, CLOCK, ROWS, MULTI, NAMES, HEADS, EXPIRIES =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local call, read = redis.call, struct.unpack

local text = call('GET', VERSION) or '0'
local t = call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local due = call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, ARGV[2])
local version = tonumber(string.match(text, '^%d+'))
for i = 1, #due do
  local name = due[i]
  local head = call('HGET', HEADS, name)
  if head then
    local members, pos, last = {}, 9, #head
    while pos <= last do
      local row, tail
      row, tail, pos = read('>I2c0I1c0', head, pos)
      members[#members + 1] = row .. name .. '\0\1' .. tail
    end
    for start = 1, #members, 4000 do
      local stop = math.min(start + 3999, #members)
      call('ZREM', ROWS, unpack(members, start, stop))
      call('ZREM', MULTI, unpack(members, start, stop))
    end
    call('HDEL', HEADS, name)
    call('ZREM', NAMES, name)
    call('UNLINK', ARGV[1] .. name)
  end
  call('ZREM', EXPIRIES, name)
end
if #due > 0 then
  version = version + 1
  if ARGV[3] == 'c' then
    local origin, node = string.sub(VERSION, 1, -2) .. 'o', call('CLUSTER', 'MYID')
    local before = call('GET', origin)
    if before ~= node then
      version = version + (before and 16777216 or 0) -- as in commit.lua
      call('SET', origin, node)
    end
  end
end
local next = call('ZRANGE', EXPIRIES, 0, 0, 'WITHSCORES')
local more = next[1] and tonumber(next[2]) <= tonumber(now)
if next[1] and not more then
  call('SET', CLOCK, '1', 'PXAT', string.format('%.0f', tonumber(next[2])))
else
  call('DEL', CLOCK)
end
call('SET', VERSION, string.format('%.0f', version) .. (next[1] and 'x' or ''))
if #due > 0 and ARGV[3] ~= 'c' then
  local heard = redis.pcall('PUBSUB', 'NUMSUB', VERSION)
  if (heard[2] or 0) > 0 then
    local parts = {struct.pack('>I8I8I1', version - 1, version, 1)} -- as in commit.lua
    for i = 1, #due do
      parts[i + 1] = struct.pack('>I4c0', #due[i], due[i])
    end
    redis.pcall('PUBLISH', VERSION, table.concat(parts))
  end
end
return {#due, more and 1 or 0}
