// Package port finds TCP ports for servers of tests that must be told theirs.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

const (
	lowest = 10000
	spread = 1000 // ports to choose from at least
	tries  = 100
)

// Free gives a port of the address (127.0.0.1) on which nobody listens. It is below those that the kernel gives to who
// asks for any, so neither a listener on port 0 nor a connection gets it before the server does, or while that is away.
func Free(address string) (int, error) {
	end := lowestOfKernel()
	if end < lowest+spread {
		return 0, fmt.Errorf("no %d ports between %d and those that the kernel gives out, from %d", spread, lowest, end)
	}
	var err error
	for range tries {
		port := lowest + rand.IntN(end-lowest)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port of %s: %w", address, err)
}

// lowestOfKernel is the first of the ports that the kernel gives out in this network namespace.
func lowestOfKernel() (first int) {
	const usual = 32768
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	if _, err := fmt.Sscan(string(text), &first); err != nil {
		return usual
	}
	return first
}
