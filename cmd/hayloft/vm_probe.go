package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/server/api/client"
)

const (
	sshPort = 22
	// probesAtOnce bounds the tunnels that are open at a time.
	probesAtOnce = 64
	// probePatience is how long a guest that accepts a connection may take to say who it is.
	probePatience = 10 * time.Second
	firstPause    = 100 * time.Millisecond
	longestPause  = time.Second
)

// probe finds out which machines answer SSH. Each is tried until it does, or its context ends.
type probe struct {
	client *client.Client
	limit  chan struct{}
	group  sync.WaitGroup

	mu       sync.Mutex
	answers  map[int]bool
	problems map[int]error // the last one of each machine
	failed   []error
}

func newProbe(c *client.Client) *probe {
	return &probe{client: c, limit: make(chan struct{}, probesAtOnce), answers: map[int]bool{}, problems: map[int]error{}}
}

// begin tries a machine in the background and calls answered when it has answered.
func (p *probe) begin(ctx context.Context, id int, answered func()) {
	p.group.Go(func() {
		err := p.until(ctx, id)
		p.mu.Lock()
		if p.answers[id] = err == nil; err != nil {
			p.failed = append(p.failed, err)
		}
		p.mu.Unlock()
		if err == nil {
			answered()
		}
	})
}

func (p *probe) until(ctx context.Context, id int) error {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := p.try(ctx, id)
		if err == nil {
			return nil
		}
		p.mu.Lock()
		if ctx.Err() == nil || p.problems[id] == nil { // else the try was cut short, and the one before it tells more
			p.problems[id] = err
		}
		p.mu.Unlock()
		if gone := p.stopped(ctx, id); gone != nil {
			return gone
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// stopped says why a machine will not answer any more.
func (p *probe) stopped(ctx context.Context, id int) error {
	vm, err := p.client.VM(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return err
	}
	if err != nil || !atRest(&vm) {
		return nil
	}
	running := goal{phase: goals["running"], strict: true}
	_, err = running.reached(vm)
	return err
}

// try connects once and reads a line.
func (p *probe) try(ctx context.Context, id int) error {
	select {
	case p.limit <- struct{}{}:
		defer func() { <-p.limit }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	conn, err := p.client.Tunnel(ctx, id, client.TunnelTCP, sshPort)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	if strings.HasPrefix(line, "SSH-") {
		return nil
	}
	if ctx.Err() != nil {
		return fault.Errorf(fault.Unavailable, "port %d is open and says nothing", sshPort)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return fault.Errorf(fault.Unavailable, "port %d says %q, which is not SSH", sshPort, printable(strings.TrimSpace(line)))
}

// wait returns when every machine has answered or been given up.
func (p *probe) wait() error {
	p.group.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return together(p.failed)
}

func (p *probe) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, ok := range p.answers {
		if ok {
			n++
		}
	}
	return n
}

func (p *probe) has(id int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers[id]
}

func (p *probe) why(id int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problems[id]
}

const (
	// consolePatience is how long a message waits for the console's last line.
	consolePatience = 3 * time.Second
	consoleTail     = 64 << 10
)

// lastConsoleLine is what a machine said last; "" when that cannot be found out.
func (a *app) lastConsoleLine(ctx context.Context, c *client.Client, id int) string {
	ctx, cancel := context.WithTimeout(ctx, a.consolePatience)
	defer cancel()
	conn, err := c.Tunnel(ctx, id, client.TunnelConsoleLog, 0)
	if err != nil {
		return ""
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var tail []byte
	piece := make([]byte, consoleTail)
	for {
		n, err := conn.Read(piece)
		tail = append(tail, piece[:n]...)
		tail = tail[max(0, len(tail)-consoleTail):]
		if err != nil {
			break
		}
	}
	lines := bytes.Split(bytes.TrimSpace(tail), []byte("\n"))
	return strings.TrimSpace(printable(string(lines[len(lines)-1])))
}
