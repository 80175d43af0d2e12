package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api/client"
)

// leave is ^], the key that ends a console.
const leave = 0x1d

func newVMConsoleCommand(a *app) *cobra.Command {
	linger := 2 * time.Second
	cmd := one("console VM", "Use a machine's serial console; ^] leaves it", "hayloft vm console web-1\n  echo 'uname -a' | hayloft vm console web-1 --linger 5s",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := machine(ctx, c, args[0])
			if err != nil {
				return err
			}
			conn, err := c.Tunnel(ctx, id, client.TunnelConsole, 0)
			if err != nil {
				return err
			}
			defer conn.Close()
			return a.console(ctx, conn, id, linger)
		}))
	cmd.Flags().DurationVar(&linger, "linger", linger, "when input is no terminal and has ended: stop after so long without output (0: never)")
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

// console joins the terminal and a console until either ends or the user leaves.
func (a *app) console(ctx context.Context, conn client.Conn, id int, linger time.Duration) error {
	if file, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		state, err := term.MakeRaw(int(file.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(file.Fd()), state) }()
		fmt.Fprintf(a.stderr, "Console of vm %d; ^] leaves it.\r\n", id)
		defer fmt.Fprint(a.stderr, "\r\n")
	}
	output := make(chan error, 1)
	heard := make(chan struct{}, 1)
	go func() {
		_, err := io.Copy(noticed{a.stdout, heard}, conn) // ends when conn is closed
		output <- err
	}()
	input := make(chan bool, 1)
	go func() { input <- typeInto(conn, a.stdin) }() // a terminal's read ends with the process
	// What was heard is written before the end, unless the user does not wait for it.
	end := func() error {
		_ = conn.Close()
		select {
		case <-output:
		case <-ctx.Done():
		}
		return nil
	}
	var quiet <-chan time.Time
	for {
		select {
		case err := <-output:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case left := <-input:
			if left {
				return end()
			}
			quiet, input = after(linger), nil
		case <-heard:
			if quiet != nil {
				quiet = after(linger)
			}
		case <-quiet:
			return end()
		}
	}
}

func after(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	return time.After(d)
}

// typeInto copies input to a console until it ends, or has ^] in it: then it says true.
func typeInto(conn io.Writer, input io.Reader) bool {
	keys := make([]byte, 4096)
	for {
		n, err := input.Read(keys)
		text, _, left := strings.Cut(string(keys[:n]), string(rune(leave)))
		if _, werr := io.WriteString(conn, text); werr != nil {
			return false
		}
		if left || err != nil {
			return left
		}
	}
}

// noticed tells of every write.
type noticed struct {
	io.Writer
	heard chan struct{}
}

func (n noticed) Write(p []byte) (int, error) {
	select {
	case n.heard <- struct{}{}:
	default:
	}
	return n.Writer.Write(p)
}

func newVMLogCommand(a *app) *cobra.Command {
	cmd := one("log VM", "Print what a machine's console has said", "hayloft vm log web-1 | tail",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := machine(ctx, c, args[0])
			if err != nil {
				return err
			}
			conn, err := c.Tunnel(ctx, id, client.TunnelConsoleLog, 0)
			if err != nil {
				return err
			}
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			if _, err = io.Copy(a.stdout, conn); ctx.Err() != nil {
				err = ctx.Err()
			}
			return err
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

func newVMTunnelCommand(a *app) *cobra.Command {
	cmd := one("tunnel VM PORT", "Connect standard input and output to a port of a machine", "hayloft vm tunnel web-1 80",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := machine(ctx, c, args[0])
			if err != nil {
				return err
			}
			port, err := portNumber(args[1])
			if err != nil {
				return err
			}
			conn, err := c.Tunnel(ctx, id, client.TunnelTCP, port)
			if err != nil {
				return err
			}
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			go func() { // ends with its input, or with the process
				_, _ = io.Copy(conn, a.stdin)
				_ = conn.CloseWrite()
			}()
			if _, err = io.Copy(a.stdout, conn); ctx.Err() != nil {
				err = ctx.Err()
			}
			return err
		}))
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

func portNumber(text string) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return 0, fault.Errorf(fault.Invalid, "port %q: want 1 to 65535", text)
	}
	return port, nil
}

func newVMVNCCommand(a *app) *cobra.Command {
	port := 0
	cmd := one("vnc VM", "Offer a machine's screen on a local port, until Ctrl-C", "hayloft vm vnc desktop --port 5901",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := machine(ctx, c, args[0])
			if err != nil {
				return err
			}
			vm, err := c.VM(ctx, id)
			if err != nil {
				return err
			}
			if vm.Graphics == nil {
				return fault.Errorf(fault.WrongState, "vm %d (%s) has no screen: its template has no GRAPHICS", id, vm.Name)
			}
			listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "vm %d: vnc://%s\n", id, listener.Addr())
			if vm.Graphics.Password != "" {
				fmt.Fprintf(a.stdout, "password: %s\n", printable(vm.Graphics.Password))
			}
			return a.forward(ctx, listener, func(ctx context.Context) (client.Conn, error) {
				return c.Tunnel(ctx, id, client.TunnelVNC, 0)
			})
		}))
	cmd.Flags().IntVar(&port, "port", 0, "local port (0: any)")
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

// forward gives each connection a tunnel of its own, until ctx ends.
func (a *app) forward(ctx context.Context, listener net.Listener, open func(context.Context) (client.Conn, error)) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		local, err := listener.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		group.Go(func() {
			defer local.Close()
			remote, err := open(ctx)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					fmt.Fprintf(a.stderr, "hayloft: %s\n", printable(err.Error()))
				}
				return
			}
			defer remote.Close()
			defer context.AfterFunc(ctx, func() { _, _ = local.Close(), remote.Close() })()
			splice(local, remote)
		})
	}
}

// splice copies both ways until both have ended.
func splice(local net.Conn, remote client.Conn) {
	var group sync.WaitGroup
	group.Go(func() {
		_, _ = io.Copy(remote, local)
		_ = remote.CloseWrite()
	})
	_, _ = io.Copy(local, remote)
	_ = local.Close() // what it still sends nobody hears
	group.Wait()
}
