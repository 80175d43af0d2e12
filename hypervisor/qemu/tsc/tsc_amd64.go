package tsc

const available = true

// read returns the time stamp counter.
func read() uint64
