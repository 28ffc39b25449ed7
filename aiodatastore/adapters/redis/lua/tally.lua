-- How often each value occurs in a span, a part at a time.
-- KEYS: 3 index rows. ARGV: 1 lo, 2 hi, 3 most rows, 4 bytes to skip.
-- Returns {version, values with their tails, counts, where to go on or ''}.
local members = call('ZRANGEBYLEX', KEYS[3], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local skip = tonumber(ARGV[4]) + 1
local by_tail, values, numbers = {}, {}, {}
for i = 1, #members do
  local member = members[i]
  local stop, length = ends(member)
  local tail, value = sub(member, stop), sub(member, skip, stop - length - 1)
  local counts = by_tail[tail]
  if not counts then
    counts = {}
    by_tail[tail] = counts
  end
  counts[value] = (counts[value] or 0) + 1
end
for tail, counts in pairs(by_tail) do
  for value, number in pairs(counts) do
    values[#values + 1] = value .. tail
    numbers[#numbers + 1] = number
  end
end
local resume = ''
if #members == tonumber(ARGV[3]) then
  resume = members[#members]
end
return {text, values, numbers, resume}
