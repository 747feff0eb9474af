-- Appends batches, but only to the queue that the producer knows: after a loss of memory it must push its whole window instead.
-- Wakes the consumer where the list was empty before, as it sleeps only after a take that found it so; and always if
-- there is a message for it.
-- KEYS: generation, batches. ARGV: generation, wake channel, message ('now': these ask for their commit at once), element, …
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local length
for i = 4, #ARGV do length = redis.call('RPUSH', KEYS[2], ARGV[i]) end
if length == #ARGV - 3 or ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return 1
