-- Sequences of a producer that wait in the list, read from the tail: a part of the list in each call.
-- KEYS: batches. ARGV: producer, elements at the tail to skip, most elements, most bytes. Returns: elements read, sequence, …
-- A batch begins with its version, producer and sequence (batch.ts), so its sums need not be searched.
local reply = { 0 }
local bytes = 0
local marker = '"producer":"' .. ARGV[1] .. '","seq":'
for i = 1, tonumber(ARGV[3]) do
  local element = redis.call('LINDEX', KEYS[1], -(tonumber(ARGV[2]) + i))
  if not element then break end
  reply[1] = i
  local head = string.sub(element, 1, 128)
  local _, last = string.find(head, marker, 1, true)
  if last then reply[#reply + 1] = string.match(head, '^%d+', last + 1) end
  bytes = bytes + #element
  if bytes > tonumber(ARGV[4]) then break end
end
return reply
