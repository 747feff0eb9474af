-- Appends batches, but only to the queue that the producer knows: after a loss of memory it must push its whole window instead.
-- KEYS: generation, batches. ARGV: generation, wake channel, element, …
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 3, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('PUBLISH', ARGV[2], '')
return 1
