package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/internal/children"
	"hayloft/lab/fleet"
	"hayloft/lab/labtest"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// patience is how long anything may take on a machine that others use too, which emulates the processors of these.
const patience = 4 * time.Minute

// hostName is the one host of a product under test.
const hostName = "lab"

// product is a Hayloft of a test's own, started as a user does: one `hayloft up`.
type product struct {
	*testing.T
	site   *fleet.Site
	client *client.Client
	binary string
	args   []string // of up, beyond those it shares with down
	ctx    context.Context
	login  login
	within bool // all of it, not the agent alone, is in the site's network namespace
	// servers end what else runs there, once the product has.
	servers []func()

	mu    sync.Mutex
	up    *exec.Cmd
	ended chan struct{}
}

// begin starts a product and has it taken down when the test ends, with a look at what is left.
// prepare, which may be nil, arranges the site before anything runs and returns flags for `up`.
func begin(t *testing.T, prepare func(*product) []string) *product {
	t.Helper()
	labtest.Root(t, "qemu-system-x86_64", "qemu-img", "lxc-start")
	binary, err := program()
	if err != nil {
		t.Fatal(err)
	}
	site, err := fleet.NewSite(kind, "")
	if err != nil {
		t.Fatal(err)
	}
	p := &product{T: t, site: site, binary: binary, login: newLogin(t)}
	var cancel context.CancelFunc
	p.ctx, cancel = context.WithCancel(context.Background()) // the test's own ends before its cleanups
	t.Cleanup(func() {
		defer cancel()
		p.takeDown()
	})
	if p.client, err = client.New(client.Config{Endpoint: "unix://" + p.socket()}); err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		p.args = prepare(p)
	}
	p.startUp()
	p.awaitHost()
	return p
}

func (p *product) socket() string   { return filepath.Join(p.site.Dir, "api.sock") }
func (p *product) stateDir() string { return filepath.Join(p.site.Dir, "state") }
func (p *product) agentDir() string { return filepath.Join(p.stateDir(), "agent") }
func (p *product) logFile() string  { return filepath.Join(p.site.Dir, "up.log") }

// flags are those that up and down share.
func (p *product) flags() []string {
	return []string{"--netns", p.site.Name, "--instance", p.site.Name, "--state-dir", p.stateDir(), "--socket", p.socket(), "--accel", "tcg"}
}

// wrappers is a directory in front of the PATH of `up`.
func (p *product) wrappers() string { return filepath.Join(p.site.Dir, "bin") }

// startUp starts `hayloft up`; whatever it says goes to the log.
func (p *product) startUp() {
	p.Helper()
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.binary, slices.Concat([]string{"up", "--host", hostName}, p.flags(), p.args)...)
	cmd.Env = append(os.Environ(), "PATH="+p.wrappers()+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	ended, started := make(chan struct{}), make(chan error, 2)
	run := func() error {
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		return err
	}
	go func() {
		defer close(ended)
		if p.within {
			started <- p.site.Namespace.Inside(run)
			return
		}
		runtime.LockOSThread() // the death signal is tied to the thread that started it
		defer runtime.UnlockOSThread()
		_ = run()
	}()
	if err := <-started; err != nil {
		p.Fatal(err)
	}
	p.mu.Lock()
	p.up, p.ended = cmd, ended
	p.mu.Unlock()
}

// awaitHost waits for the agent to be there with something to run machines on.
func (p *product) awaitHost() api.Host {
	p.Helper()
	var host api.Host
	p.eventually("the agent joins", func() error {
		select {
		case <-p.ended:
			return errors.New("hayloft up ended")
		default:
		}
		hosts, err := p.client.Hosts(p.ctx)
		if err != nil {
			return err
		}
		if len(hosts) != 1 || !hosts[0].Connected || len(hosts[0].Hypervisor) == 0 {
			return fmt.Errorf("hosts: %+v", hosts)
		}
		host = hosts[0]
		return nil
	})
	return host
}

// eventually tries until there is no error, and fails the test with the last one.
func (p *product) eventually(what string, try func() error) {
	p.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// takeDown takes the product down as a user does and asserts that nothing of it is left.
func (p *product) takeDown() {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if p.Failed() {
		p.Logf("the end of the log:\n%s", p.logTail(400))
		p.showConsoles()
	}
	if p.client != nil {
		p.client.Close()
	}
	if p.up != nil {
		down := exec.CommandContext(ctx, p.binary, slices.Concat([]string{"down", "--purge"}, p.flags(), p.args)...)
		if said, err := down.CombinedOutput(); err != nil {
			p.Errorf("hayloft down: %v\n%s\n%s", err, said, p.logTail(60))
		}
		p.mu.Lock()
		up, ended := p.up, p.ended
		p.mu.Unlock()
		select {
		case <-ended:
		case <-time.After(patience):
			p.Error("hayloft up goes on after hayloft down")
			p.killTree(up.Process.Pid)
			<-ended
		}
	}
	for _, end := range p.servers {
		end()
	}
	if err := p.site.Close(ctx); err != nil {
		p.Error(err)
	}
	left, err := p.site.Leftovers()
	if err != nil {
		p.Error(err)
	}
	for _, what := range fleet.Found(left) {
		p.Errorf("left: %s", what)
	}
}

// killTree ends a `hayloft up` that does not, with its children.
func (p *product) killTree(pid int) {
	for _, child := range children.Under(pid) {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func (p *product) logTail(lines int) string {
	text, _ := os.ReadFile(p.logFile())
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// showConsoles logs what the machines that are there have said last, from their files.
func (p *product) showConsoles() {
	for _, dir := range p.machineDirs() {
		logs, _ := filepath.Glob(filepath.Join(dir, "*", "console.log"))
		for _, path := range logs {
			text, _ := os.ReadFile(path)
			p.Logf("%s: %q", path, text[max(0, len(text)-1000):])
		}
	}
}

// child finds the server or the agent below `hayloft up`; 0 when it is not there at this moment.
func (p *product) child(name string) int {
	p.mu.Lock()
	pid := p.up.Process.Pid
	p.mu.Unlock()
	for _, child := range children.Of(pid) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
		if words := bytes.Split(line, []byte{0}); len(words) > 1 && string(words[1]) == name {
			return child
		}
	}
	return 0
}

// cli runs the hayloft program as a user and returns its exit status and what it said.
func (p *product) cli(args ...string) (status int, stdout, stderr string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.binary, args...)
	cmd.Env = append(os.Environ(), client.EnvEndpoint+"=unix://"+p.socket(), "XDG_CACHE_HOME="+p.site.Dir)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaint.String()
}

// must is a command that succeeds.
func (p *product) must(args ...string) string {
	p.Helper()
	status, out, complaint := p.cli(args...)
	if status != 0 {
		p.Fatalf("hayloft %s: exit status %d: %s", strings.Join(args, " "), status, complaint)
	}
	return strings.TrimSpace(out)
}

// refused is a command that fails with the class and with all the words in its message.
func (p *product) refused(class fault.Class, words []string, args ...string) {
	p.Helper()
	status, _, complaint := p.cli(args...)
	if status != class.ExitStatus() {
		p.Errorf("hayloft %s: exit status %d, want %d (%v): %s", strings.Join(args, " "), status, class.ExitStatus(), class, complaint)
	}
	p.says("hayloft "+strings.Join(args, " "), complaint, words...)
}

// says checks that a message has all the words.
func (p *product) says(what, message string, words ...string) {
	p.Helper()
	for _, word := range words {
		if !strings.Contains(message, word) {
			p.Errorf("%s says %q, and nothing of %q", what, strings.TrimSpace(message), word)
		}
	}
}

// create makes machines from text and returns their ids.
func (p *product) create(c api.CreateVMs) []int {
	p.Helper()
	ids, err := p.client.CreateVMs(p.ctx, c)
	if err != nil {
		p.Fatal(err)
	}
	return ids
}

// one makes one machine.
func (p *product) one(text string) int {
	p.Helper()
	return p.create(api.CreateVMs{Text: text})[0]
}

// act asks for an action, which must be accepted.
func (p *product) act(id int, action string) {
	p.Helper()
	if err := p.client.Act(p.ctx, id, action); err != nil {
		p.Fatal(err)
	}
}

// reaches waits until a machine is in the state; another one in which it would stay ends the wait.
func (p *product) reaches(id int, state string) api.VM {
	p.Helper()
	return p.reach([]int{id}, state)[0]
}

func (p *product) reach(ids []int, state string) []api.VM {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	var vms []api.VM
	err := fault.Errorf(fault.Unavailable, "not asked yet")
	for fault.Is(err, fault.Unavailable) && ctx.Err() == nil { // one that answered may have been about to end
		p.answers()
		vms, err = p.client.WaitVMs(ctx, ids, func(vm api.VM) (bool, error) {
			if vm.StateName == state && (state != "DONE" || vm.HostID < 0) {
				return true, nil
			}
			if vm.LCM.Failure() {
				return false, fmt.Errorf("vm %d is %s, not %s: %s", vm.ID, vm.StateName, state, vm.Error)
			}
			return false, nil
		}, nil)
	}
	if err != nil {
		for _, vm := range vms {
			if vm.StateName != state {
				p.Logf("vm %d is %s, host %d, orders %+v, message %q %q", vm.ID, vm.StateName, vm.HostID, vm.Orders, vm.Error, vm.SchedMessage)
			}
		}
		p.Fatalf("waiting for %s: %v", state, err)
	}
	return vms
}

// answers waits for the server, which may have been killed.
func (p *product) answers() {
	p.Helper()
	p.eventually("the server answers", func() error {
		_, err := p.client.Version(p.ctx)
		return err
	})
}

// image registers an image and waits until it is ready.
func (p *product) image(template string) int {
	p.Helper()
	id, err := p.client.CreateImage(p.ctx, template, "")
	if err != nil {
		p.Fatalf("image %s: %v", template, err)
	}
	p.imageReady(id)
	return id
}

func (p *product) imageReady(id int) api.Image {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	image, err := p.client.WaitImage(ctx, id, func(i api.Image, gone bool) (bool, error) {
		if gone || i.State == cloud.ImageStateError {
			return true, fmt.Errorf("image %d (%s): %s", id, i.Name, i.Error)
		}
		return i.State == cloud.ImageStateReady, nil
	})
	if err != nil {
		p.Fatal(err)
	}
	return image
}

// network makes the virtual network that all tests use.
func (p *product) network() {
	p.Helper()
	_, err := p.client.CreateNetwork(p.ctx, `NAME="net" VN_MAD="bridge" BRIDGE="hlbr0"
AR=[TYPE="IP4", IP="10.66.0.10", SIZE="200"]
GATEWAY="10.66.0.1" NETWORK_MASK="255.255.255.0" DNS="10.66.0.1" HOST_GATEWAY="YES"`, "")
	if err != nil {
		p.Fatal(err)
	}
}

// leases counts the addresses that are given out.
func (p *product) leases() int {
	p.Helper()
	network, err := p.client.Network(p.ctx, "net")
	if err != nil {
		p.Fatal(err)
	}
	return len(network.Leases)
}
