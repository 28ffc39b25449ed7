-- Verify and apply a batch of transactions; each is atomic by itself, the later see what the earlier wrote.
--
-- KEYS: 1 version, 2 clock, 3 index rows, 4 those of entities with several, 5 entity keys, 6 versions and rows,
--       7 expiries, 8 the lane; from 9 on every entity that the batch names; in a cluster last of all the guard, which
--       never exists: so the script does not run while keys of the slot are on their way to another node.
-- ARGV: 1 length of what entity names begin with, 2 fence ('' or index, version), 3 number in the lane ('': nothing
--       is written), 4 'x' if any entity of the batch is given a time to live, 'r' if there are spans, index puts or
--       index deletes, 'c' in a cluster; then for each commit a header, and what the header announces: lo, hi, digest of each span;
--       payload and rows of each put; row and tail of each index put; row of each index delete.
-- Returns {0, verdicts}, {1} if entities have expired and must be swept first, {2} if the fence does not hold,
--       {3} if a later batch of the lane was applied already.
--
-- A function costs as much as a row, as it is made anew in each run: those that are rarely needed are made if they are.

local FIRST = 8
local LANE_MS = 3600000
local STEP_MS = 50 -- expiries are rounded up to this, so that sweeps are rare however many entities expire
local MOST_TOLD = 2000 -- entities named in one message
local CHUNK = 4000 -- Lua refuses to spread 8000 values
local GAP = 16777216 -- versions that are left out when another node writes: what it did not receive had some of them

local call, read, write, sub, byte = redis.call, struct.unpack, struct.pack, string.sub, string.byte

local number = ARGV[3]
if number ~= '' then
  local last = call('GET', KEYS[8])
  if last then
    local done, asked = read('>I8', last), read('>I8', number)
    if done == asked then
      call('PEXPIRE', KEYS[8], LANE_MS) -- a write, for WAIT after it
      return {byte(last, 9), sub(last, 10)}
    elseif done > asked then
      return {3}
    end
  end
end

local found = call('MGET', KEYS[1], KEYS[2])
local text = found[1] or '0'
local expires = byte(text, -1) == 120
if expires and not found[2] then
  return {1}
end
local version = tonumber(expires and sub(text, 1, -2) or text)
local stored = version
local clustered = string.find(ARGV[4], 'c', 1, true)
local origin, node
if clustered and number ~= '' then
  origin, node = sub(KEYS[1], 1, -2) .. 'o', call('CLUSTER', 'MYID')
  local before = call('GET', origin)
  if before == node then
    origin = nil
  elseif before then
    version = version + GAP
  end
end
local mortal = expires or string.find(ARGV[4], 'x', 1, true)

local cut = tonumber(ARGV[1]) + 1
local names, heads = {}, nil -- of each entity: its escaped key; version and rows, or false
local count = #KEYS - FIRST - (clustered and 1 or 0)
for i = 1, count do
  names[i] = sub(KEYS[FIRST + i], cut)
end
if count == 0 then
  heads = {}
elseif count <= CHUNK then
  heads = call('HMGET', KEYS[6], unpack(names))
else
  heads = {}
  for start = 1, count, CHUNK do
    local stop = math.min(start + CHUNK - 1, count)
    local some = call('HMGET', KEYS[6], unpack(names, start, stop))
    for i = start, stop do
      heads[i] = some[i - start + 1]
    end
  end
end

-- What is to be written, an entity at most once before it is flushed: so these need no order among them.
local now = {payloads = {}, added = {}, changed = {}, lives = {}, add = {}, multi = {}, remove = {}}
local dirty = false
local told = {} -- the entities that were written
local write_lives

local function spread(command, key, list)
  local size = #list
  if size == 0 then
    return
  elseif size <= 4000 then
    redis.call(command, key, unpack(list))
    return
  end
  for start = 1, size, 4000 do
    redis.call(command, key, unpack(list, start, math.min(start + 3999, size)))
  end
end

local function flush()
  if not dirty then
    return
  end
  local sets, gone, fields, lost, new, old = {}, {}, {}, {}, {}, {}
  local n = 0
  for i in pairs(now.changed) do
    local head = heads[i]
    told[i] = true
    if head then
      fields[n + 1] = names[i]
      fields[n + 2] = head
      n = n + 2
    else
      lost[#lost + 1] = names[i]
    end
  end
  n = 0
  for i, payload in pairs(now.payloads) do
    if payload then
      sets[n + 1] = KEYS[8 + i]
      sets[n + 2] = payload
      n = n + 2
    else
      gone[#gone + 1] = KEYS[8 + i]
    end
  end
  n = 0
  for i, is_new in pairs(now.added) do
    if is_new then
      new[n + 1] = '0'
      new[n + 2] = names[i]
      n = n + 2
    else
      old[#old + 1] = names[i]
    end
  end
  for start = 1, #sets, 4000 do
    redis.call('MSET', unpack(sets, start, math.min(start + 3999, #sets)))
  end
  for start = 1, #gone, 4000 do
    redis.call('UNLINK', unpack(gone, start, math.min(start + 3999, #gone)))
  end
  spread('HSET', KEYS[6], fields)
  spread('HDEL', KEYS[6], lost)
  spread('ZADD', KEYS[5], new)
  spread('ZREM', KEYS[5], old)
  spread('ZREM', KEYS[3], now.remove)
  spread('ZREM', KEYS[4], now.remove)
  spread('ZADD', KEYS[3], now.add)
  spread('ZADD', KEYS[4], now.multi)
  if next(now.lives) then
    write_lives()
  end
  now = {payloads = {}, added = {}, changed = {}, lives = {}, add = {}, multi = {}, remove = {}}
  dirty = false
end

-- Index rows of an entity: those of before (heads[i]) give way to the packed ones ('': none).
local function replace_rows(i, packed)
  local rest, old = names[i] .. '\0\1', heads[i]
  local add, multi = now.add, now.multi
  local n, pos, last = #add, 1, #packed
  local head, tail
  local was
  if old then
    local old_pos, old_last = 9, #old
    local old_head, old_tail
    -- Most rows stay, in their order.
    while pos <= last and old_pos <= old_last do
      local after, old_after
      head, tail, after = read('>I2c0I1c0', packed, pos)
      old_head, old_tail, old_after = read('>I2c0I1c0', old, old_pos)
      if head ~= old_head or tail ~= old_tail then
        break
      end
      pos, old_pos = after, old_after
    end
    was = {}
    while old_pos <= old_last do
      old_head, old_tail, old_pos = read('>I2c0I1c0', old, old_pos)
      was[old_head] = old_tail
    end
  end
  while pos <= last do
    head, tail, pos = read('>I2c0I1c0', packed, pos)
    if was and was[head] == tail then
      was[head] = nil
    else
      local member = head .. rest .. tail
      add[n + 1] = '0'
      add[n + 2] = member
      n = n + 2
      if #tail > 2 and byte(tail, -3) % 128 > 63 then
        multi[#multi + 1] = '0'
        multi[#multi + 1] = member
      end
    end
  end
  if was then
    local remove = now.remove
    for gone, its in pairs(was) do
      remove[#remove + 1] = gone .. rest .. its
    end
  end
end

if mortal then
  write_lives = function()
    local t = call('TIME')
    local time = t[1] * 1000 + math.floor(t[2] / 1000)
    local add, remove = {}, {}
    for i, ms in pairs(now.lives) do
      if ms then
        add[#add + 1] = string.format('%.0f', math.ceil((time + ms) / STEP_MS) * STEP_MS)
        add[#add + 1] = names[i]
      else
        remove[#remove + 1] = names[i]
      end
    end
    spread('ZREM', KEYS[7], remove)
    spread('ZADD', KEYS[7], add)
    local next = call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')
    expires = next[1] ~= nil
    if expires then
      call('SET', KEYS[2], '1', 'PXAT', string.format('%.0f', tonumber(next[2])))
    else
      call('DEL', KEYS[2])
    end
  end
end

local holds, forget_row, give_row
if string.find(ARGV[4], 'r', 1, true) then
  holds = function(space, lo, hi, expected, digest)
    flush()
    local key = KEYS[space == 0 and 5 or 3]
    if call('ZLEXCOUNT', key, lo, hi) ~= expected then
      return false
    end
    if digest == '' then
      return true
    end
    local seen = call('ZRANGEBYLEX', key, lo, hi)
    if space == 0 then
      local parts = {}
      for start = 1, #seen, CHUNK do
        local stop = math.min(start + CHUNK - 1, #seen)
        local some = call('HMGET', KEYS[6], unpack(seen, start, stop))
        for i = start, stop do
          parts[#parts + 1] = seen[i]
          parts[#parts + 1] = '\0\1' .. sub(some[i - start + 1] or '', 1, 8)
        end
      end
      seen = parts
    else
      for i = 1, #seen do
        local row = seen[i]
        seen[i] = sub(row, 1, string.find(row, '\0\1', 1, true) + 1)
      end
    end
    return redis.sha1hex(table.concat(seen)) == digest
  end

  forget_row = function(row)
    flush()
    call('ZREMRANGEBYLEX', KEYS[3], '[' .. row .. '\0\1', '(' .. row .. '\0\2')
    call('ZREMRANGEBYLEX', KEYS[4], '[' .. row .. '\0\1', '(' .. row .. '\0\2')
  end

  give_row = function(i, row, tail)
    local member = row .. '\0\1' .. tail
    now.add[#now.add + 1] = '0'
    now.add[#now.add + 1] = member
    if #tail > 2 and byte(tail, -3) % 128 > 63 then
      now.multi[#now.multi + 1] = '0'
      now.multi[#now.multi + 1] = member
    end
    local old = heads[i] -- none for an orphan, or where it has no entity
    if not old then
      return
    end
    local mine = sub(row, 1, #row - #names[i])
    local kept, pos, last = {sub(old, 1, 8)}, 9, #old
    while pos <= last do
      local head, _, after = read('>I2c0I1c0', old, pos)
      if head ~= mine then
        kept[#kept + 1] = sub(old, pos, after - 1)
      end
      pos = after
    end
    kept[#kept + 1] = write('>I2c0I1c0', #mine, mine, #tail, tail)
    heads[i] = table.concat(kept)
    now.changed[i] = true
  end
end

if ARGV[2] ~= '' then
  local i, expected = read('>I4i8', ARGV[2])
  local head = heads[i]
  local actual = head and (read('>I8', head)) or 0
  if actual ~= expected and not (expected == -1 and actual > 0) then
    if number ~= '' then
      call('SET', KEYS[8], number .. '\2', 'PX', LANE_MS)
    end
    return {2}
  end
end

local out = {}
local arg, last_arg = 5, #ARGV
while arg <= last_arg do
  local header = ARGV[arg]
  arg = arg + 1
  local checks, spans, puts, deletes, row_puts, row_deletes, pos = read('>I4I4I4I4I4I4', header)
  local wrong, stale = nil, 0
  for _ = 1, checks do
    local i, expected
    i, expected, pos = read('>I4i8', header, pos)
    local head = heads[i]
    local actual = head and (read('>I8', head)) or 0
    if actual ~= expected and not (expected == -1 and actual > 0) then
      wrong = wrong or {}
      wrong[#wrong + 1] = i
      wrong[#wrong + 1] = actual
    end
  end
  for _ = 1, spans do
    local space, expected
    space, expected, pos = read('>I1I4', header, pos)
    if not holds(space, ARGV[arg], ARGV[arg + 1], expected, ARGV[arg + 2]) then
      stale = stale + 1
    end
    arg = arg + 3
  end
  if wrong or stale > 0 then
    out[#out + 1] = {stale, wrong or {}}
    arg = arg + 2 * puts + 2 * row_puts + row_deletes
  elseif puts + deletes + row_puts + row_deletes == 0 then
    out[#out + 1] = version
  else
    version = version + 1
    dirty = true
    local stamp = write('>I8', version)
    for _ = 1, puts do
      local i, ms
      i, ms, pos = read('>I4I8', header, pos)
      local packed = ARGV[arg + 1]
      if now.changed[i] then
        flush()
        dirty = true
      end
      local old = heads[i]
      if not old or sub(old, 9) ~= packed then
        replace_rows(i, packed)
      end
      if not old then
        now.added[i] = true
      end
      heads[i] = stamp .. packed
      now.payloads[i] = stamp .. ARGV[arg]
      now.changed[i] = true
      if mortal then
        now.lives[i] = ms > 0 and ms
      end
      arg = arg + 2
    end
    for _ = 1, deletes do
      local i
      i, pos = read('>I4', header, pos)
      if now.changed[i] then
        flush()
        dirty = true
      end
      if heads[i] then
        replace_rows(i, '')
        heads[i], now.payloads[i], now.changed[i], now.added[i] = false, false, true, false
        if mortal then
          now.lives[i] = false
        end
      end
    end
    if row_puts + row_deletes > 0 then
      local first_put = arg
      arg = arg + 2 * row_puts
      for _ = 1, row_deletes do
        forget_row(ARGV[arg])
        arg = arg + 1
      end
      for n = 1, row_puts do
        forget_row(ARGV[first_put + 2 * n - 2])
      end
      for n = 1, row_puts do
        local i
        i, pos = read('>I4', header, pos)
        give_row(i, ARGV[first_put + 2 * n - 2], ARGV[first_put + 2 * n - 1])
      end
      dirty = true
    end
    out[#out + 1] = version
  end
end
flush()
local verdicts = cmsgpack.pack(out)
if version ~= stored then
  if origin then
    call('SET', origin, node)
  end
  call('SET', KEYS[1], string.format(expires and '%.0fx' or '%.0f', version))
  if not clustered then
    -- Whoever may not look for subscribers has none.
    local heard = redis.pcall('PUBSUB', 'NUMSUB', KEYS[1])
    if (heard[2] or 0) > 0 then
      local parts = {write('>I8I8I1', stored, version, 1)}
      for i in pairs(told) do
        parts[#parts + 1] = write('>I4c0', #names[i], names[i])
        if #parts > MOST_TOLD then
          parts = {write('>I8I8I1', stored, version, 0)}
          break
        end
      end
      redis.pcall('PUBLISH', KEYS[1], table.concat(parts))
    end
  end
end
if number ~= '' then
  call('SET', KEYS[8], number .. '\0' .. verdicts, 'PX', LANE_MS)
end
return {0, verdicts}
