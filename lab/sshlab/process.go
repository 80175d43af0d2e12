package sshlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/children"
)

// process is sshd or one that it started. Its directory in /proc is held open: that stays its own, while the number may become
// another's when it has ended.
type process struct {
	pid int
	dir *os.File
}

func openProcess(pid int) (*process, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return nil, err
	}
	return &process{pid: pid, dir: dir}, nil
}

func closeAll(all []*process) {
	for _, p := range all {
		p.dir.Close()
	}
}

func (p *process) file(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", p.dir.Fd(), name)
}

// signal does nothing when the process has ended.
func (p *process) signal(s unix.Signal) { _ = unix.PidfdSendSignal(int(p.dir.Fd()), s, nil, 0) }

// stat has the fields of a file of /proc behind the name of the process: state, parent ... None when it has ended.
func stat(file string) []string {
	text, _ := os.ReadFile(file)
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// children are the processes that it has started and that nobody has waited for.
func (p *process) children() []*process {
	var found []*process
	for _, pid := range children.Of(p.pid) {
		child, err := openProcess(pid)
		if err != nil {
			continue // ended meanwhile
		}
		if fields := stat(child.file("stat")); len(fields) < 2 || fields[1] != strconv.Itoa(p.pid) {
			child.dir.Close() // the number is another's
			continue
		}
		found = append(found, child)
	}
	if len(stat(p.file("stat"))) == 0 { // it has ended, and they may be those of another with its number
		closeAll(found)
		return nil
	}
	return found
}

// threads are the states of its threads; none when it has ended.
func (p *process) threads() []string {
	var states []string
	files, _ := filepath.Glob(p.file("task/[0-9]*/stat")) // no error: the pattern is good
	for _, file := range files {
		if fields := stat(file); len(fields) > 0 {
			states = append(states, fields[0])
		}
	}
	return states
}

// all reports whether all its threads are in one of these states. Those that were started while we looked are seen
// at the second look.
func (p *process) all(in string) bool {
	for range 2 {
		for _, state := range p.threads() {
			if !strings.Contains(in, state) {
				return false
			}
		}
	}
	return true
}

// ended reports whether nothing of it runs any more; it may still have to be waited for.
func (p *process) ended() bool { return p.all("ZX") }

func (p *process) await(what string, done func() bool) {
	for limit := time.Now().Add(patience); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			panic(fmt.Sprintf("process %d (%v) does not %s", p.pid, p.threads(), what))
		}
	}
}

// halt stops processes and all that they have started, and gives them, parents before children. One that is stopped starts
// no others, so none is missed; and one that waits for its child to begin (vfork) can be stopped, because the child
// goes on until then.
func halt(top []*process) []*process {
	all := top
	for i := 0; i < len(all); i++ {
		p := all[i]
		p.signal(unix.SIGSTOP)
		p.await("stop", func() bool { return p.all("TtZX") })
		all = append(all, p.children()...)
	}
	return all
}

// end kills halted processes and waits for that. Children first: their parents are halted, and don't see it.
func end(all []*process) {
	for _, p := range slices.Backward(all) {
		p.signal(unix.SIGKILL)
	}
	for _, p := range all {
		p.await("end", p.ended)
	}
	closeAll(all)
}

// socket is one of TCP.
type socket struct {
	inode  string
	state  string
	unread int // bytes
}

const listening = "0A" // as a state

func (p *process) listens() bool {
	return slices.ContainsFunc(p.sockets(), func(s socket) bool { return s.state == listening })
}

// sockets are those of IPv4 that the process has open.
func (p *process) sockets() []socket {
	has := map[string]bool{}
	files, _ := filepath.Glob(p.file("fd/*")) // no error: the pattern is good
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil {
			has[to] = true
		}
	}
	text, _ := os.ReadFile(p.file("net/tcp")) // of the process's network namespace
	var found []socket
	for line := range strings.Lines(string(text)) {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
		f := strings.Fields(line)
		if len(f) < 10 || !has["socket:["+f[9]+"]"] {
			continue
		}
		_, queue, _ := strings.Cut(f[4], ":")
		unread, err := strconv.ParseUint(queue, 16, 32)
		if err != nil {
			continue
		}
		found = append(found, socket{inode: f[9], state: f[3], unread: int(unread)})
	}
	return found
}
