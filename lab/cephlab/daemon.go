package cephlab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"hayloft/lab/labtest"
)

// daemon is one process of the cluster.
type daemon struct {
	process *os.Process
	dead    chan struct{}
}

// start runs a program of the cluster in the foreground; what it complains about goes to a file.
func (c *Cluster) start(name, program string, args ...string) error {
	args = append([]string{"-c", c.Conf, "-f", "--setuser", "root", "--setgroup", "root"}, args...)
	log, err := os.OpenFile(c.path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.config.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	d := &daemon{dead: make(chan struct{})}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with the thread that made it
		defer runtime.UnlockOSThread()
		defer close(d.dead)
		err := cmd.Start()
		begun <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-begun; err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	d.process = cmd.Process
	c.daemons[name] = d
	return nil
}

func (d *daemon) kill() {
	_ = d.process.Kill()
	<-d.dead
}

// Stop has a daemon ("mon", "mgr", "osd") hang until Continue: it answers nothing any more when this returns.
func (c *Cluster) Stop(name string) error { return labtest.Halt(c.daemons[name].process.Pid) }

// Continue is the opposite of Stop.
func (c *Cluster) Continue(name string) error { return c.daemons[name].process.Signal(syscall.SIGCONT) }

// Kill ends a daemon at once.
func (c *Cluster) Kill(name string) { c.daemons[name].kill() }

// End lets a daemon end by itself; an OSD writes what it has in memory to its directory.
func (c *Cluster) End(name string) error {
	d := c.daemons[name]
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.dead:
		return nil
	case <-time.After(endLimit):
		d.kill()
		return fmt.Errorf("%s did not end in %v", name, endLimit)
	}
}

const endLimit = 2 * time.Minute
