-- Pops handled elements from the head for as long as the head is the next of them, byte for byte.
-- KEYS: owner, batches. ARGV: owner, SHA-1 of an element, … Returns: owner found, length left.
local owner = redis.call('GET', KEYS[1]) or ''
if owner == ARGV[1] then
  for i = 2, #ARGV do
    local head = redis.call('LINDEX', KEYS[2], 0)
    if not head or redis.sha1hex(head) ~= ARGV[i] then break end
    redis.call('LPOP', KEYS[2])
  end
end
return { owner, redis.call('LLEN', KEYS[2]) }
