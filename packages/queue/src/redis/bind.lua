-- Makes ARGV[2] the owner if ARGV[1] still is ('' for nobody). KEYS: owner.
-- DEL comes first because at maxmemory a script's first write must not need memory: a plain SET would be refused
-- and lock out the only process that frees any.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
return 1
