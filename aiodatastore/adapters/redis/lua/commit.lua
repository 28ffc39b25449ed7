-- Verify and apply a batch of transactions; each is atomic by itself, the later see what the earlier wrote.
--
-- KEYS: 1 version, 2 clock, 3 index rows, 4 those of entities with several, 5 entity keys, 6 versions and rows,
--       7 expiries, 8 the lane; from 9 on every entity that the batch names.
-- ARGV: 1 length of what entity names begin with, 2 fence ('' or index, version), 3 number in the lane ('': nothing
--       is written), 4 '1' if any entity of the batch is given a time to live; then for each commit a header, and what
--       the header announces: lo, hi, digest of each span; payload and rows of each put; row and tail of each index
--       put; row of each index delete.
-- Returns {0, verdicts}, {1} if entities have expired and must be swept first, {2} if the fence does not hold,
--       {3} if a later batch of the lane was applied already.

local VERSION, CLOCK, ROWS, MULTI, NAMES, HEADS, EXPIRIES, LANE =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local FIRST = 8
local LANE_MS = 3600000
local STEP_MS = 50 -- expiries are rounded up to this, so that sweeps are rare however many entities expire
local CHUNK = 4000 -- Lua refuses to spread 8000 values

local call, read, write, sub, byte = redis.call, struct.unpack, struct.pack, string.sub, string.byte

local number = ARGV[3]
if number ~= '' then
  local last = call('GET', LANE)
  if last then
    local done, asked = read('>I8', last), read('>I8', number)
    if done == asked then
      call('PEXPIRE', LANE, LANE_MS) -- a write, for WAIT after it
      return {byte(last, 9), sub(last, 10)}
    elseif done > asked then
      return {3}
    end
  end
end

local found = call('MGET', VERSION, CLOCK)
local text = found[1] or '0'
local expires = sub(text, -1) == 'x'
if expires and not found[2] then
  return {1}
end
local version = tonumber(string.match(text, '^%d+'))
local stored = version

local cut = tonumber(ARGV[1]) + 1
local names, heads = {}, {} -- of each entity: its escaped key; version and rows, or false
local count = #KEYS - FIRST
for i = 1, count do
  names[i] = sub(KEYS[FIRST + i], cut)
end
for start = 1, count, CHUNK do
  local stop = math.min(start + CHUNK - 1, count)
  local some = call('HMGET', HEADS, unpack(names, start, stop))
  for i = start, stop do
    heads[i] = some[i - start + 1]
  end
end

local function version_of(i)
  local head = heads[i]
  return head and (read('>I8', head)) or 0
end

-- What is to be written, an entity at most once before it is flushed: so these need no order among them.
local payloads, changed, added, lives = {}, {}, {}, {}
local add_rows, add_multi, remove_rows = {}, {}, {}
local dirty = false

local function spread(command, key, list)
  for start = 1, #list, CHUNK do
    call(command, key, unpack(list, start, math.min(start + CHUNK - 1, #list)))
  end
end

local function write_lives()
  local t = call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local add, remove = {}, {}
  for i, ms in pairs(lives) do
    if ms then
      add[#add + 1] = string.format('%.0f', math.ceil((now + ms) / STEP_MS) * STEP_MS)
      add[#add + 1] = names[i]
    else
      remove[#remove + 1] = names[i]
    end
  end
  spread('ZREM', EXPIRIES, remove)
  spread('ZADD', EXPIRIES, add)
  local next = call('ZRANGE', EXPIRIES, 0, 0, 'WITHSCORES')
  expires = next[1] ~= nil
  if expires then
    call('SET', CLOCK, '1', 'PXAT', string.format('%.0f', tonumber(next[2])))
  else
    call('DEL', CLOCK)
  end
end

local function flush()
  if not dirty then
    return
  end
  local sets, gone, fields, lost, new, old = {}, {}, {}, {}, {}, {}
  for i in pairs(changed) do
    local head = heads[i]
    if head then
      fields[#fields + 1] = names[i]
      fields[#fields + 1] = head
    else
      lost[#lost + 1] = names[i]
    end
  end
  for i, payload in pairs(payloads) do
    if payload then
      sets[#sets + 1] = KEYS[FIRST + i]
      sets[#sets + 1] = payload
    else
      gone[#gone + 1] = KEYS[FIRST + i]
    end
  end
  for i, is_new in pairs(added) do
    if is_new then
      new[#new + 1] = '0'
      new[#new + 1] = names[i]
    else
      old[#old + 1] = names[i]
    end
  end
  for start = 1, #sets, CHUNK do
    call('MSET', unpack(sets, start, math.min(start + CHUNK - 1, #sets)))
  end
  for start = 1, #gone, CHUNK do
    call('UNLINK', unpack(gone, start, math.min(start + CHUNK - 1, #gone)))
  end
  spread('HSET', HEADS, fields)
  spread('HDEL', HEADS, lost)
  spread('ZADD', NAMES, new)
  spread('ZREM', NAMES, old)
  spread('ZREM', ROWS, remove_rows)
  spread('ZREM', MULTI, remove_rows)
  spread('ZADD', ROWS, add_rows)
  spread('ZADD', MULTI, add_multi)
  if next(lives) then
    write_lives()
  end
  payloads, changed, added, lives = {}, {}, {}, {}
  add_rows, add_multi, remove_rows = {}, {}, {}
  dirty = false
end

local function add_row(member, tail)
  local n = #add_rows
  add_rows[n + 1] = '0'
  add_rows[n + 2] = member
  if #tail > 2 and byte(tail, -3) % 128 > 63 then
    n = #add_multi
    add_multi[n + 1] = '0'
    add_multi[n + 2] = member
  end
end

local function replace_rows(i, packed) -- '' for none
  local rest, old = names[i] .. '\0\1', heads[i]
  if not old then
    local pos, last = 1, #packed
    while pos <= last do
      local head, tail
      head, tail, pos = read('>I2c0I1c0', packed, pos)
      add_row(head .. rest .. tail, tail)
    end
    return
  end
  if sub(old, 9) == packed then
    return
  end
  local was, pos, last = {}, 9, #old
  while pos <= last do
    local head, tail
    head, tail, pos = read('>I2c0I1c0', old, pos)
    was[head] = tail
  end
  pos, last = 1, #packed
  while pos <= last do
    local head, tail
    head, tail, pos = read('>I2c0I1c0', packed, pos)
    if was[head] == tail then
      was[head] = nil
    else
      add_row(head .. rest .. tail, tail)
    end
  end
  for head, tail in pairs(was) do
    remove_rows[#remove_rows + 1] = head .. rest .. tail
  end
end

local function forget_row(row)
  flush()
  call('ZREMRANGEBYLEX', ROWS, '[' .. row .. '\0\1', '(' .. row .. '\0\2')
  call('ZREMRANGEBYLEX', MULTI, '[' .. row .. '\0\1', '(' .. row .. '\0\2')
end

local function give_row(i, row, tail) -- to what an entity's rows are known to be
  local old = heads[i]
  if not old then
    return
  end
  local mine = sub(row, 1, #row - #names[i])
  local kept, pos, last = {sub(old, 1, 8)}, 9, #old
  while pos <= last do
    local head, its, after = read('>I2c0I1c0', old, pos)
    if head ~= mine then
      kept[#kept + 1] = sub(old, pos, after - 1)
    end
    pos = after
  end
  kept[#kept + 1] = write('>I2c0I1c0', #mine, mine, #tail, tail)
  heads[i] = table.concat(kept)
  changed[i] = true
end

local function holds(space, lo, hi, count, digest)
  flush()
  local key = space == 0 and NAMES or ROWS
  if call('ZLEXCOUNT', key, lo, hi) ~= count then
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
      local some = call('HMGET', HEADS, unpack(seen, start, stop))
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

if ARGV[2] ~= '' then
  local i, expected = read('>I4i8', ARGV[2])
  local actual = version_of(i)
  if actual ~= expected and not (expected == -1 and actual > 0) then
    if number ~= '' then
      call('SET', LANE, number .. '\2', 'PX', LANE_MS)
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
  local wrong, stale = {}, 0
  for _ = 1, checks do
    local i, expected
    i, expected, pos = read('>I4i8', header, pos)
    local actual = version_of(i)
    if actual ~= expected and not (expected == -1 and actual > 0) then
      wrong[#wrong + 1] = i
      wrong[#wrong + 1] = actual
    end
  end
  for _ = 1, spans do
    local space, count
    space, count, pos = read('>I1I4', header, pos)
    if not holds(space, ARGV[arg], ARGV[arg + 1], count, ARGV[arg + 2]) then
      stale = stale + 1
    end
    arg = arg + 3
  end
  if #wrong > 0 or stale > 0 then
    out[#out + 1] = {stale, wrong}
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
      if changed[i] then
        flush()
        dirty = true
      end
      replace_rows(i, packed)
      if not heads[i] then
        added[i] = true
      end
      heads[i] = stamp .. packed
      payloads[i] = stamp .. ARGV[arg]
      changed[i] = true
      if ms > 0 then
        lives[i] = ms
      elseif expires or ARGV[4] == '1' then
        lives[i] = false
      end
      arg = arg + 2
    end
    for _ = 1, deletes do
      local i
      i, pos = read('>I4', header, pos)
      if changed[i] then
        flush()
        dirty = true
      end
      if heads[i] then
        replace_rows(i, '')
        heads[i], payloads[i], changed[i], added[i] = false, false, true, false
        if expires or ARGV[4] == '1' then
          lives[i] = false
        end
      end
    end
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
      local i, row, tail
      i, pos = read('>I4', header, pos)
      row, tail = ARGV[first_put + 2 * n - 2], ARGV[first_put + 2 * n - 1]
      add_row(row .. '\0\1' .. tail, tail)
      if i > 0 then
        give_row(i, row, tail)
      end
    end
    dirty = true
    out[#out + 1] = version
  end
end
flush()
local verdicts = cmsgpack.pack(out)
if version ~= stored then
  call('SET', VERSION, string.format('%.0f', version) .. (expires and 'x' or ''))
end
if number ~= '' then
  call('SET', LANE, number .. '\0' .. verdicts, 'PX', LANE_MS)
end
return {0, verdicts}
