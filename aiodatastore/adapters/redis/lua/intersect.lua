-- Rows that several prefixes share, less the prefix, in order.
--
-- KEYS: 3 index rows. ARGV: 1 lo, 2 hi, 3 limit, 4 '1' in reverse, 5 how many rows to look at, 6 '1' with records,
-- 7 what entity names begin with; from 8 on the prefixes.
-- Returns {version, rests with tails, multi, records, resume or nil}.
--
-- The sparsest span is read in windows. Of every other span, the part within a window is read as well, if it is not much
-- larger; else it is asked for each row. Where a span has nothing within a window, it tells where to go on. Rests are
-- compared for equality only: Lua orders strings by locale.
local lo, hi, limit, reverse, budget = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5])
local rows = KEYS[3]
local WINDOW, LARGEST, TIMES, PROBE = 32, 512, 4, 4

local prefixes, tails_of, driver, least = {}, {}, 1, nil
for p = 1, #ARGV - 7 do
  prefixes[p] = ARGV[7 + p]
  local count = call('ZLEXCOUNT', rows, '[' .. prefixes[p] .. lo, '(' .. prefixes[p] .. hi)
  if not least or count < least then
    driver, least = p, count
  end
end

-- Rests and tails of members that begin with a prefix of this length.
local function cut(members, length)
  local rests, tails = {}, {}
  for i = 1, #members do
    local member = members[i]
    local stop = find(member, '\0\1', 1, true)
    rests[i] = sub(member, length + 1, stop - 1)
    tails[i] = sub(member, stop + 2)
  end
  return rests, tails
end

local function after(rest) -- where to go on behind a row
  return reverse and rest or rest .. '\0\255'
end

local done = least == 0
local target = reverse and hi or lo
local window = WINDOW
local out, multi, owners = {}, {}, {}

while not done and #out < limit and budget > 0 do
  local prefix = prefixes[driver]
  local members
  if reverse then
    members = call('ZREVRANGEBYLEX', rows, '(' .. prefix .. target, '[' .. prefix .. lo, 'LIMIT', 0, window)
  else
    members = call('ZRANGEBYLEX', rows, '[' .. prefix .. target, '(' .. prefix .. hi, 'LIMIT', 0, window)
  end
  local size = #members
  budget = budget - size
  if size == 0 then
    done = true
    break
  end
  local rests, tails = cut(members, #prefix)
  local first, last = rests[1], rests[size]
  if reverse then
    first, last = last, first
  end
  local empty = false
  for p = 1, #prefixes do
    if p ~= driver then
      local from, to = '[' .. prefixes[p] .. first, '(' .. prefixes[p] .. last .. '\0\2'
      local count = call('ZLEXCOUNT', rows, from, to)
      if count == 0 then
        local beyond
        if reverse then
          beyond = call('ZREVRANGEBYLEX', rows, '(' .. prefixes[p] .. first, '[' .. prefixes[p] .. lo, 'LIMIT', 0, 1)
        else
          beyond = call('ZRANGEBYLEX', rows, '[' .. prefixes[p] .. last .. '\0\2', '(' .. prefixes[p] .. hi, 'LIMIT', 0, 1)
        end
        local there = cut(beyond, #prefixes[p])[1]
        if there then
          target = reverse and there .. '\0\255' or there
        else
          done = true
        end
        empty = true
        break
      elseif count <= TIMES * size then
        local its, their = cut(call('ZRANGEBYLEX', rows, from, to), #prefixes[p])
        local found = {}
        for i = 1, #its do
          found[its[i]] = their[i]
        end
        tails_of[p] = found
        budget = budget - count
      else
        tails_of[p] = false
      end
    end
  end
  if not empty then
    local whole = true
    for i = 1, size do
      local rest, tail = rests[i], tails[i]
      local shared, several = true, #tail > 2 and byte(tail, -3) % 128 > 63
      for p = 1, #prefixes do
        if p ~= driver then
          local found = tails_of[p]
          local its
          if found then
            its = found[rest]
          else
            local row = prefixes[p] .. rest
            local _, there = cut(call('ZRANGEBYLEX', rows, '[' .. row .. '\0\1', '(' .. row .. '\0\2', 'LIMIT', 0, 1), 0)
            its = there[1]
            budget = budget - PROBE
          end
          if not its then
            shared = false
            break
          end
          if #its > 2 and byte(its, -3) % 128 > 63 then
            several = true
          end
          if p == 1 then
            tail = its
          end
        end
      end
      if shared then
        local n = #out + 1
        out[n] = rest .. '\0\1' .. tail
        multi[n] = several and 1 or 0
        owners[n] = owner(out[n])
      end
      if #out == limit or budget <= 0 then
        whole = i == size
        target = after(rest)
        break
      end
    end
    if whole then
      target = after(rests[size])
      done = size < window
    end
  end
  window = math.min(2 * window, LARGEST)
end
return {text, out, multi, ARGV[6] == '1' and records(ARGV[7], owners) or {}, not done and target}
