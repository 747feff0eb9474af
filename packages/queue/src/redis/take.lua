-- A run from the head, without removing it.
-- KEYS: owner, batches. ARGV: owner, most elements, most bytes, most bytes of one element. Returns: owner found, length, element, …
-- An element that is too large for any batch is replaced by a line that describes it: whoever takes it would be busy for longer
-- than a connection waits, and take it again for ever. That happens here and not in a later step, so that it is done even if the
-- reply comes too late. LTRIM comes first because at maxmemory a script's first write must not need memory.
local owner = redis.call('GET', KEYS[1]) or ''
local length = redis.call('LLEN', KEYS[2])
local reply = { owner, length }
if owner ~= ARGV[1] then return reply end
local bytes = 0
for i = 0, math.min(length, tonumber(ARGV[2])) - 1 do
  local element = redis.call('LINDEX', KEYS[2], i)
  if #element > tonumber(ARGV[4]) then
    -- It comes to the head in the next run.
    if i > 0 then break end
    local sha1 = redis.sha1hex(element)
    local size = string.format('%.0f', #element)
    element = 'an element of ' .. size .. ' bytes, SHA-1 ' .. sha1 .. ', more than a batch has (' .. ARGV[4] .. '); it began: ' .. string.sub(element, 1, 1024)
    redis.call('LTRIM', KEYS[2], 1, -1)
    redis.call('LPUSH', KEYS[2], element)
  end
  bytes = bytes + #element
  if i > 0 and bytes > tonumber(ARGV[3]) then break end
  reply[#reply + 1] = element
end
return reply
