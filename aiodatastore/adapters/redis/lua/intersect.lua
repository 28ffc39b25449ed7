-- Rows that several prefixes share, less the prefix, by leapfrogging: each seeks to where the others already are.
--
-- KEYS: 3 index rows. ARGV: 1 lo, 2 hi, 3 limit, 4 '1' in reverse, 5 most seeks, 6 '1' with records, 7 what entity
-- names begin with; from 8 on the prefixes. Rests are compared for equality only: Lua orders strings by locale.
-- Returns {version, rests, multi, records, resume or nil}.
local lo, hi, limit, reverse, seeks = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5])
local prefixes = #ARGV - 7
local target = reverse and hi or lo
local rests, multi, owners = {}, {}, {}
local done = false
local place, agreed, candidate, first, several = 0, 0, nil, nil, 0

while #rests < limit and seeks > 0 do
  seeks = seeks - 1
  local prefix = ARGV[8 + place]
  local hit
  if reverse then
    hit = call('ZREVRANGEBYLEX', KEYS[3], '(' .. prefix .. target, '[' .. prefix .. lo, 'LIMIT', 0, 1)[1]
  else
    hit = call('ZRANGEBYLEX', KEYS[3], '[' .. prefix .. target, '(' .. prefix .. hi, 'LIMIT', 0, 1)[1]
  end
  if not hit then
    done = true
    break
  end
  local key, stop = owner(hit)
  local rest = sub(hit, #prefix + 1, stop - 1)
  local is_multi = #hit - stop > 3 and byte(hit, -3) % 128 > 63
  if rest ~= candidate then
    candidate, agreed, several = rest, 0, 0
    target = reverse and rest .. '\0\255' or rest
  end
  if is_multi then
    several = 1
  end
  if place == 0 then
    first = sub(hit, #prefix + 1)
  end
  agreed = agreed + 1
  place = (place + 1) % prefixes
  if agreed == prefixes then
    rests[#rests + 1] = first
    multi[#rests] = several
    owners[#rests] = key
    target = reverse and rest or rest .. '\0\255'
    candidate, agreed = nil, 0
  end
end
return {text, rests, multi, ARGV[6] == '1' and records(ARGV[7], owners) or {}, not done and target}
