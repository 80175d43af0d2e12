// Package port finds TCP ports for servers of tests that must be told theirs.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	lowest = 10000
	spread = 1000 // ports to choose from at least
	tries  = 100
)

// Free gives a port of the address (127.0.0.1) on which nobody listens. It is below those that the kernel gives to who
// asks for any, so neither a listener on port 0 nor a connection gets it before the server does, or while that is away; and
// no other process that asks here gets it while this one runs.
func Free(address string) (int, error) {
	end := lowestOfKernel()
	if end < lowest+spread {
		return 0, fmt.Errorf("no %d ports between %d and those that the kernel gives out, from %d", spread, lowest, end)
	}
	var err error
	for range tries {
		port := lowest + rand.IntN(end-lowest)
		var mine int
		if mine, err = reserve(port); err != nil {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port))); err != nil {
			unix.Close(mine)
			continue
		}
		keep(mine)
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port of %s: %w", address, err)
}

// reserve makes the port this process's among those who ask here: it takes the abstract name of a socket, which is gone when
// the process is, and another one in another network namespace.
func reserve(port int) (socket int, err error) {
	socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: "@hayloft-port-" + strconv.Itoa(port)}); err != nil {
		unix.Close(socket)
		return -1, fmt.Errorf("port %d: %w", port, err)
	}
	return socket, nil
}

// most is how many ports a process keeps to itself; after that the oldest is anybody's.
const most = 200

var kept struct {
	sync.Mutex
	sockets []int
}

func keep(socket int) {
	kept.Lock()
	defer kept.Unlock()
	kept.sockets = append(kept.sockets, socket)
	if len(kept.sockets) > most {
		unix.Close(kept.sockets[0])
		kept.sockets = kept.sockets[1:]
	}
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
