-- What every script that reads begins with: nothing is shown while expired entities are to be swept (nil).
-- KEYS: 1 version, 2 clock.
local call, sub, byte, find = redis.call, string.sub, string.byte, string.find
local seen = call('MGET', KEYS[1], KEYS[2])
local text = seen[1] or '0'
if sub(text, -1) == 'x' and not seen[2] then
  return false
end

-- Where the row of a member ends, and the length of the escaped key at its end.
local function ends(member)
  local stop, size = find(member, '\0\1', 1, true), #member
  local a, b, c = byte(member, math.max(stop + 2, size - 2), size)
  if c then
    return stop, a % 64 * 65536 + b * 256 + c
  elseif b then
    return stop, a * 256 + b
  end
  return stop, a or 0
end

-- The escaped key at the end of the row of a member.
local function owner(member)
  local stop, length = ends(member)
  return sub(member, stop - length, stop - 1)
end

-- Records of entities by name, in chunks that Lua can spread.
local function records(base, names)
  local out = {}
  for start = 1, #names, 4000 do
    local full = {}
    for i = start, math.min(start + 3999, #names) do
      full[#full + 1] = base .. names[i]
    end
    local some = call('MGET', unpack(full))
    for i = 1, #full do
      out[start + i - 1] = some[i]
    end
  end
  return out
end
