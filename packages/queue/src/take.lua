-- A run from the head, without removing it.
-- KEYS: owner, batches. ARGV: owner, most elements, most bytes. Returns: owner found, length, element, …
local owner = redis.call('GET', KEYS[1]) or ''
local length = redis.call('LLEN', KEYS[2])
local reply = { owner, length }
if owner ~= ARGV[1] then return reply end
local bytes = 0
for i = 0, math.min(length, tonumber(ARGV[2])) - 1 do
  local element = redis.call('LINDEX', KEYS[2], i)
  bytes = bytes + #element
  if i > 0 and bytes > tonumber(ARGV[3]) then break end
  reply[#reply + 1] = element
end
return reply
