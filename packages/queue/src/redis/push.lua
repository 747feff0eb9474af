-- Appends batches, but only to the queue that the producer knows: after a loss of memory it must push its whole window instead.
-- Wakes the consumer only where the list was empty before: it sleeps only after a take that found it so.
-- KEYS: generation, batches. ARGV: generation, wake channel, element, …
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local length
for i = 3, #ARGV do length = redis.call('RPUSH', KEYS[2], ARGV[i]) end
if length == #ARGV - 2 then redis.call('PUBLISH', ARGV[2], '') end
return 1
