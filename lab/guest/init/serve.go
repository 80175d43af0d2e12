package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hayloft/lab/guest/channel"
)

// waitDelay is how long the output of a program that ended is waited for, on a machine that may stand still for seconds.
const waitDelay = 20 * time.Second

// server does what the outside asks for.
type server struct {
	conn    *channel.Conn
	mutex   sync.Mutex
	running map[uint32]*program
}

// program is one that was asked for. It may be killed before it starts.
type program struct {
	cmd    *exec.Cmd // nil before
	killed bool
}

func serve(ctx context.Context) error {
	if err := errors.Join(startNetwork(), startDevices(ctx)); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	s := &server{conn: channel.New(port), running: map[uint32]*program{}}
	if err := s.conn.Send(channel.Frame{Kind: channel.Ready}); err != nil {
		return err
	}
	for {
		f, err := s.conn.Receive()
		if err != nil {
			return err
		}
		switch f.Kind {
		case channel.Run:
			one := s.begin(f.Number)
			go s.run(f, one)
		case channel.Put:
			s.end(f.Number, 0, put(f.Payload)) // in order: a file comes in parts
		case channel.Kill:
			s.kill(f.Number)
		case channel.Forward:
			go func() { s.end(f.Number, 0, forward(f.Payload, func() error { return s.started(f.Number) })) }()
		case channel.PowerOff:
			return nil
		default:
			return fmt.Errorf("frame of kind %d", f.Kind)
		}
	}
}

// openPort finds the serial port by its name.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(name)) == channel.PortName {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no serial port %s", channel.PortName)
}

func (s *server) end(number uint32, exit int, err error) {
	status := channel.Status{Exit: exit}
	if err != nil {
		status.Error = err.Error()
	}
	if err := s.conn.SendJSON(channel.Exit, number, status); err != nil {
		fmt.Println("init: answer:", err)
	}
}

// started tells that a request which lasts has begun.
func (s *server) started(number uint32) error {
	return s.conn.Send(channel.Frame{Kind: channel.Stdout, Number: number, Payload: []byte("started\n")})
}

// begin comes before the next frame, which may be about this one.
func (s *server) begin(number uint32) *program {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	one := &program{}
	s.running[number] = one
	return one
}

func (s *server) forget(number uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.running, number)
}

func (s *server) run(f channel.Frame, one *program) {
	defer s.forget(f.Number)
	var c channel.Command
	if err := json.Unmarshal(f.Payload, &c); err != nil {
		s.end(f.Number, 0, err)
		return
	}
	cmd := exec.Command(c.Name, c.Args...)
	cmd.Env, cmd.Dir = append(os.Environ(), c.Env...), c.Dir
	if c.Stdin != nil {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	cmd.Stdout = output{s.conn, channel.Stdout, f.Number}
	cmd.Stderr = output{s.conn, channel.Stderr, f.Number}
	cmd.WaitDelay = waitDelay // a daemon may keep its parent's output open
	if err := s.start(cmd, one); err != nil {
		s.end(f.Number, 0, err)
		return
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	s.end(f.Number, cmd.ProcessState.ExitCode(), err)
}

func (s *server) start(cmd *exec.Cmd, one *program) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if one.killed {
		return errors.New("killed before it was started")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	one.cmd = cmd
	return nil
}

func (s *server) kill(number uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	one := s.running[number]
	if one == nil {
		return // ended
	}
	one.killed = true
	if one.cmd != nil {
		one.cmd.Process.Kill() // it may have ended by now
	}
}

// output sends what a program writes.
type output struct {
	conn   *channel.Conn
	kind   channel.Kind
	number uint32
}

func (o output) Write(data []byte) (int, error) {
	return len(data), o.conn.Send(channel.Frame{Kind: o.kind, Number: o.number, Payload: data})
}

func put(payload []byte) error {
	var file channel.File
	if err := json.Unmarshal(payload, &file); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if file.Append {
		flags = os.O_WRONLY | os.O_APPEND
	}
	f, err := os.OpenFile(file.Path, flags, os.FileMode(file.Mode).Perm())
	if err != nil {
		return err
	}
	_, err = f.Write(file.Data)
	return errors.Join(err, f.Close())
}

// forward carries connections on until it fails; started is called when it listens.
func forward(payload []byte, started func() error) error {
	var f channel.Forwarding
	if err := json.Unmarshal(payload, &f); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.Listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := started(); err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go carry(conn.(*net.TCPConn), f.Dial)
	}
}

// carry joins a connection with a new one to the address; when that fails, the first is closed, as a refusal.
func carry(inner *net.TCPConn, address string) {
	defer inner.Close()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		fmt.Println("init: forward:", err)
		return
	}
	outer := conn.(*net.TCPConn)
	defer outer.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(outer, inner) // an error ends the connection, as closing it does
		outer.CloseWrite()
	}()
	io.Copy(inner, outer)
	inner.CloseWrite()
	<-done
}
