package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
	"hayloft/lab/guest/channel"
)

var _ command.Runner = (*Guest)(nil)

// Run runs a program in the guest as root and returns its output: a command.Runner, with its errors.
func (g *Guest) Run(ctx context.Context, c command.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	exit, err := g.Stream(ctx, c, &stdout, &stderr)
	if err == nil && exit != 0 {
		err = &command.Error{Cmd: c, Status: exit, Stderr: stderr.String()}
	}
	return stdout.Bytes(), err
}

// Stream runs a program in the guest as root and returns its exit status, -1 when a signal ended it. What it writes
// comes to the writers at once; they must not wait for another answer of the guest. When ctx ends, the program is
// killed.
func (g *Guest) Stream(ctx context.Context, c command.Cmd, stdout, stderr io.Writer) (int, error) {
	b, err := g.running()
	if err != nil {
		return 0, err
	}
	one, err := b.calls.add(stdout, stderr)
	if err == nil {
		err = b.conn.SendJSON(channel.Run, one.number, channel.Command{Name: c.Name, Args: c.Args, Env: c.Env, Dir: c.Dir, Stdin: c.Stdin})
	}
	if err != nil {
		return 0, fmt.Errorf("kernel guest: %s: %w", c.Name, err)
	}
	select {
	case <-one.done:
	case <-ctx.Done():
		err := b.conn.Send(channel.Frame{Kind: channel.Kill, Number: one.number})
		if err == nil {
			<-one.done // its output is written to no longer
		}
		return 0, fmt.Errorf("kernel guest: %s: %w", c.Name, ctx.Err())
	}
	if one.err != nil {
		return 0, fmt.Errorf("kernel guest: %s: %w", c.Name, one.err)
	}
	if one.status.Error != "" {
		return 0, fault.Errorf(fault.Unsupported, "kernel guest: %s: %s", c.Name, one.status.Error)
	}
	return one.status.Exit, nil
}

// partSize is how much of a file one frame carries, in bytes.
const partSize = 1 << 20

// Put writes a file in the guest. It takes a second for 10 MB: what is bigger, or the same at each boot, belongs to
// Config.Programs.
func (g *Guest) Put(ctx context.Context, path string, data []byte, mode os.FileMode) error {
	b, err := g.running()
	if err != nil {
		return err
	}
	for offset := 0; offset == 0 || offset < len(data); offset += partSize {
		part := channel.File{Path: path, Mode: uint32(mode.Perm()), Data: data[offset:min(offset+partSize, len(data))], Append: offset > 0}
		one, err := b.calls.add(io.Discard, io.Discard)
		if err == nil {
			err = b.conn.SendJSON(channel.Put, one.number, part)
		}
		if err == nil {
			err = one.wait(ctx)
		}
		if err != nil {
			return fmt.Errorf("kernel guest: file %s: %w", path, err)
		}
	}
	return nil
}

// wait waits for the end of a call that is no program.
func (c *call) wait(ctx context.Context) error {
	select {
	case <-c.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.err == nil && c.status.Error != "" {
		return errors.New(c.status.Error)
	}
	return c.err
}

// Forward makes the guest accept connections at the address, on its own loopback, and carries them to the same address
// of the outside, until the guest ends: so a service on loopback, which tells its clients its addresses, is
// found by the guest where it is. Config.Network.Outside must be set, and the address be 127.0.0.1:port.
func (g *Guest) Forward(ctx context.Context, address string) error {
	b, err := g.running()
	if err != nil {
		return err
	}
	port, ok := cutLoopback(address)
	if !ok || !g.config.Network.Outside {
		return fault.Errorf(fault.Invalid, "kernel guest: forward %s: only of 127.0.0.1, with the network to the outside", address)
	}
	started := make(chan struct{})
	one, err := b.calls.add(once{started}, io.Discard)
	if err == nil {
		err = b.conn.SendJSON(channel.Forward, one.number, channel.Forwarding{Listen: address, Dial: "10.0.2.2:" + port})
	}
	if err == nil {
		select {
		case <-started:
		case <-one.done:
			err = one.wait(ctx)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return fmt.Errorf("kernel guest: forward %s: %w", address, err)
	}
	return nil
}

// once is a writer that tells of its one write.
type once struct{ written chan struct{} }

func (o once) Write(data []byte) (int, error) {
	close(o.written)
	return len(data), nil
}
