// Shake runs a program and holds single threads of the test programs and Hayloft processes under it for a moment
// each, chosen by chance: what a busy machine does to a thread now and then, shake does many times a
// second on a quiet one. A test that passes only because one goroutine is quicker than another fails under it.
//
//	make shake PKG=./disk/cache COUNT=5 RUN=Drain
//
// The threads are held with ptrace(2), so that the rest of the process goes on: for root, or one who may trace his
// own processes.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/children"
)

const eventStop = 128 // PTRACE_EVENT_STOP of ptrace(2): the thread stopped because we asked, not for a signal

func main() {
	pause := flag.Duration("pause", 20*time.Millisecond, "how long a holder waits between two threads, on average")
	holders := flag.Int("holders", 3, "how many threads may be held at once")
	most := flag.Duration("most", 300*time.Millisecond, "the longest that a thread is held")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: shake [-pause d] [-holders n] [-most d] program [argument...]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 || *pause <= 0 || *most <= 0 || *holders < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if os.Getenv(keeperEnv) != "" {
		os.Exit(keep(flag.Args()))
	}
	status, err := run(*holders, *pause, *most)
	if err != nil {
		fmt.Fprintln(os.Stderr, "shake:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// keeperEnv makes shake the parent of the program and nothing else. Who traces a process must not be its parent: of
// the two waits, for its end and for its stops, the one would take what the other waits for.
const keeperEnv = "HAYLOFT_SHAKE_KEEPER"

// keep runs the program until it ends and returns its exit status.
func keep(args []string) int {
	_ = os.Unsetenv(keeperEnv)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGQUIT)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "shake:", err)
		return 1
	}
	go func() { // as long as this process
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	_ = cmd.Wait() // its status tells
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// run has a keeper run the program, holds threads until it ends, and returns its exit status.
func run(holders int, pause, most time.Duration) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), keeperEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range holders {
		wg.Go(func() {
			runtime.LockOSThread() // ptrace knows the tracer by its thread, which ends with the goroutine
			for {
				select {
				case <-stop:
					return
				case <-time.After(rand.N(2 * pause)):
				}
				if tid := pick(cmd.Process.Pid); tid != 0 {
					hold(tid, length(most), stop)
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case s := <-signals:
				_ = cmd.Process.Signal(s)
			}
		}
	})
	_ = cmd.Wait() // its status tells
	close(stop)
	wg.Wait()
	return cmd.ProcessState.ExitCode(), nil
}

// length is mostly short, and at times long.
func length(most time.Duration) time.Duration {
	x := rand.Float64()
	return time.Duration(x * x * x * float64(most))
}

// pick chooses a thread of a test program or a Hayloft process under root, rather one that runs than one that waits; 0
// when there is none.
func pick(root int) int {
	var ours []int
	for _, pid := range children.Under(root) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if n := strings.TrimSpace(string(name)); n == "hayloft" || strings.HasSuffix(n, ".test") {
			ours = append(ours, pid)
		}
	}
	var runs, waits []int
	for _, pid := range ours {
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, e := range threads {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
			switch _, rest, _ := strings.Cut(string(text), ") "); {
			case strings.HasPrefix(rest, "R"):
				runs = append(runs, tid)
			case strings.HasPrefix(rest, "S"):
				waits = append(waits, tid)
			}
		}
	}
	if len(runs) > 0 && rand.IntN(4) > 0 {
		return runs[rand.IntN(len(runs))]
	}
	if len(waits) > 0 {
		return waits[rand.IntN(len(waits))]
	}
	return 0
}

// hold stops a thread for d. Whatever it was about to be told by a signal it is told afterwards.
func hold(tid int, d time.Duration, stop <-chan struct{}) {
	if unix.PtraceSeize(tid) != nil {
		return // gone, or traced by another holder
	}
	_ = unix.PtraceInterrupt(tid) // fails when it has just been killed: its end, which others wait for, is ours to take first
	ws, lives := stopped(tid)
	if !lives {
		return
	}
	select {
	case <-time.After(d):
	case <-stop:
	}
	for lives {
		pending := 0
		if int(ws)>>16 != eventStop {
			pending = int(ws.StopSignal())
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(pending), 0, 0); errno == 0 {
			return
		}
		ws, lives = stopped(tid) // killed meanwhile
	}
}

// stopped waits until a thread that is traced has stopped; false when it has ended instead.
func stopped(tid int) (ws unix.WaitStatus, lives bool) {
	for {
		_, err := unix.Wait4(tid, &ws, unix.WALL, nil)
		if err != unix.EINTR {
			return ws, err == nil && ws.Stopped()
		}
	}
}
