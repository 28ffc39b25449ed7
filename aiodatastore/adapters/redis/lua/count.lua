-- Rows of a span, and how many of them belong to entities with several. KEYS: 3 rows, 4 those rows.
local rows = call('ZLEXCOUNT', KEYS[3], ARGV[1], ARGV[2])
local multi = 0
if KEYS[4] then
  multi = call('ZLEXCOUNT', KEYS[4], ARGV[1], ARGV[2])
end
return {text, rows, multi}
