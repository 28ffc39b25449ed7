-- Rows of a span. KEYS: 3 index rows or entity keys, 4 versions and rows (for entities without payloads).
-- ARGV: 1 command, 2 and 3 its bounds, 4 limit, 5 '' or 'rows' or 'names' (join what with records) or 'versions',
-- 6 what entity names begin with. Returns {version, rows, records}.
local members = call(ARGV[1], KEYS[3], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
local join = ARGV[5]
if join == '' or #members == 0 then
  return {text, members, {}}
elseif join == 'names' then
  return {text, members, records(ARGV[6], members)}
elseif join == 'versions' then
  local out = {}
  for start = 1, #members, 4000 do
    local stop = math.min(start + 3999, #members)
    local some = call('HMGET', KEYS[4], unpack(members, start, stop))
    for i = start, stop do
      out[i] = sub(some[i - start + 1] or '', 1, 8)
    end
  end
  return {text, members, out}
end
local owners = {}
for i = 1, #members do
  owners[i] = owner(members[i])
end
return {text, members, records(ARGV[6], owners)}
