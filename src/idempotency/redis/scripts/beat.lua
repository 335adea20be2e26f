-- Renews the heartbeat of a process: its number and its name. Returns the time in microseconds.
beat(ARGV[2], ARGV[3])
return micros
