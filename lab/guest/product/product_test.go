package product

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hayloft/cloud"
	"hayloft/internal/command"
	"hayloft/lab/labtest"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

const (
	// patience is how long one step may take, on an emulated processor that others use too.
	patience = 8 * time.Minute
	instance = "hay"
	hostName = "guest"
)

// product is a Hayloft as a user starts it, with one `hayloft up`. In the guest nothing else needs the network, so it has no
// namespace of its own.
type product struct {
	*testing.T
	dir     string
	program string
	args    []string // of up, beyond those it shares with down
	client  *client.Client
	began   time.Time
	before  string // what the guest has of mounts, devices and sessions before it
}

// begin starts a product with the flags, which ends with the test and must leave nothing behind.
func begin(t *testing.T, args ...string) *product {
	t.Helper()
	p := &product{T: t, program: labtest.Program(t, "cmd/hayloft"), args: args, began: time.Now()}
	p.sh("modprobe loop max_loop=0; modprobe tun") // hosts have their control devices from the start
	p.before = p.foreign()
	var err error
	if p.dir, err = os.MkdirTemp("", "hay"); err != nil { // short: it is for sockets; QEMU's user must get in
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	if err := os.Chmod(p.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if p.client, err = client.New(client.Config{Endpoint: "unix://" + p.socket()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.client.Close)
	p.up()
	p.eventually("the agent joins", func() error {
		hosts, err := p.client.Hosts(t.Context())
		if err == nil && (len(hosts) != 1 || !hosts[0].Connected || len(hosts[0].Hypervisor) == 0) {
			err = fmt.Errorf("hosts: %+v", hosts)
		}
		return err
	})
	p.step("up")
	return p
}

func (p *product) socket() string  { return filepath.Join(p.dir, "api.sock") }
func (p *product) logFile() string { return filepath.Join(p.dir, "up.log") }

// flags are those that up and down share.
func (p *product) flags() []string {
	return append([]string{"--instance", instance, "--state-dir", filepath.Join(p.dir, "state"), "--socket", p.socket(),
		"--hypervisors", "qemu", "--accel", "tcg"}, p.args...)
}

func (p *product) up() {
	p.Helper()
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.program, append([]string{"up", "--host", hostName}, p.flags()...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.Cleanup(func() {
		if p.Failed() {
			text, _ := os.ReadFile(p.logFile())
			p.Logf("the end of the log:\n%s", text[max(0, len(text)-20<<10):])
		}
		p.down()
		select {
		case err := <-ended:
			if err != nil {
				p.Errorf("hayloft up: %v", err)
			}
		case <-time.After(patience):
			p.Error("hayloft up goes on after hayloft down")
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		p.nothingLeft()
	})
}

// down takes everything down as a user does.
func (p *product) down() {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.Context()), patience)
	defer cancel()
	said, err := exec.CommandContext(ctx, p.program, slices.Concat([]string{"down", "--purge"}, p.flags())...).CombinedOutput()
	if err != nil {
		p.Errorf("hayloft down: %v\n%s", err, said)
	}
	p.step("down")
}

// step tells where the time goes.
func (p *product) step(format string, args ...any) {
	p.Helper()
	p.Logf("%6.1f s: %s", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

// eventually tries until there is no error, and fails the test with the last one.
func (p *product) eventually(what string, try func() error) {
	p.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	p.Fatalf("%s: %v", what, err)
}

// cli runs the program as a user does; it must succeed.
func (p *product) cli(args ...string) string {
	p.Helper()
	cmd := exec.CommandContext(p.Context(), p.program, args...)
	cmd.Env = append(os.Environ(), client.EnvEndpoint+"=unix://"+p.socket(), "XDG_CACHE_HOME="+p.dir)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		p.Fatalf("hayloft %s: %v: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out.String()
}

// sh runs a script, which ends at the first command that fails.
func (p *product) sh(script string) string {
	p.Helper()
	return sh(p.T, script)
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := (command.Exec{}).Run(context.WithoutCancel(t.Context()), command.Cmd{Name: "/bin/sh", Args: []string{"-ec", script}})
	if err != nil {
		t.Errorf("%s: %v %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// datastore makes a datastore from its template.
func (p *product) datastore(template string) {
	p.Helper()
	if _, err := p.client.CreateDatastore(p.Context(), template, ""); err != nil {
		p.Fatal(err)
	}
}

// image registers an image in a datastore and waits until it is ready.
func (p *product) image(name, datastore, kind string, content []byte) api.Image {
	p.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, content, 0o644); err != nil {
		p.Fatal(err)
	}
	id, err := p.client.CreateImage(p.Context(), fmt.Sprintf("NAME=%q TYPE=%s PATH=%q", name, kind, file), datastore)
	if err != nil {
		p.Fatalf("image %s: %v", name, err)
	}
	i := p.imageReady(id)
	p.step("image %s in %s", name, datastore)
	return i
}

// persistent registers an image that the machine using it owns.
func (p *product) persistent(name, datastore string, content []byte) api.Image {
	p.Helper()
	i := p.image(name, datastore, "DATABLOCK", content)
	if err := p.client.SetPersistent(p.Context(), name, true); err != nil {
		p.Fatal(err)
	}
	return i
}

func (p *product) imageReady(id int) api.Image {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	i, err := p.client.WaitImage(ctx, id, func(i api.Image, gone bool) (bool, error) {
		if gone || i.State == cloud.ImageStateError {
			return true, fmt.Errorf("image %d (%s): %s", id, i.Name, i.Error)
		}
		return i.State == cloud.ImageStateReady, nil
	})
	if err != nil {
		p.Fatal(err)
	}
	return i
}

func (p *product) imageOf(name string) api.Image {
	p.Helper()
	i, err := p.client.Image(p.Context(), name)
	if err != nil {
		p.Fatal(err)
	}
	return i
}

// deleteImage deletes an image and waits until its object has gone.
func (p *product) deleteImage(name string) {
	p.Helper()
	i := p.imageOf(name)
	if err := p.client.Delete(p.Context(), cloud.KindImage, name); err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	_, err := p.client.WaitImage(ctx, i.ID, func(i api.Image, gone bool) (bool, error) {
		if i.State == cloud.ImageStateError {
			return true, fmt.Errorf("image %d (%s): %s", i.ID, i.Name, i.Error)
		}
		return gone, nil
	})
	if err != nil {
		p.Error(err)
	}
}

// machine makes one machine.
func (p *product) machine(text string) int {
	p.Helper()
	ids, err := p.client.CreateVMs(p.Context(), api.CreateVMs{Text: text})
	if err != nil {
		p.Fatal(err)
	}
	return ids[0]
}

// through asks for an action and waits for the state that it leads to.
func (p *product) through(id int, action, state string) {
	p.Helper()
	if err := p.client.Act(p.Context(), id, action); err != nil {
		p.Fatal(err)
	}
	p.reaches(id, state)
}

// reaches waits until a machine is in the state; see is shown it on the way.
func (p *product) reaches(id int, state string, see ...func(api.VM)) api.VM {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	vms, err := p.client.WaitVMs(ctx, []int{id}, func(vm api.VM) (bool, error) {
		for _, look := range see {
			look(vm)
		}
		if vm.LCM.Failure() {
			return false, errors.New(vm.Error)
		}
		return vm.StateName == state && (state != "DONE" || vm.HostID < 0), nil
	}, nil)
	if err != nil {
		p.Fatalf("waiting for %s: vm %d is %s: %v; %q, %q", state, id, vms[0].StateName, err, vms[0].Error, vms[0].SchedMessage)
	}
	p.step("vm %d: %s", id, state)
	return vms[0]
}
