package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hayloft/cloud"
	"hayloft/cloud/fault"
	"hayloft/server/api"
	"hayloft/server/api/client"
)

// sshFlags are the flags of `hayloft vm ssh`.
type sshFlags struct {
	user, identity string
	port           int
	options        []string
}

func newVMSSHCommand(a *app) *cobra.Command {
	f := sshFlags{}
	cmd := one("ssh VM [COMMAND...]", "Log in to a machine, through its host: no route to it is needed",
		"hayloft vm ssh web-1\n  hayloft vm ssh -i ~/.ssh/lab web-1 -- uptime\n  hayloft vm ssh web-1 -- sh -c 'cat > /root/data' < data",
		a.remote(func(ctx context.Context, c *client.Client, args []string) error {
			id, err := machine(ctx, c, args[0])
			if err != nil {
				return err
			}
			vm, err := c.VM(ctx, id)
			if err != nil {
				return err
			}
			server, err := c.Version(ctx)
			if err != nil {
				return err
			}
			words := args[1:]
			if len(words) > 0 && words[0] == "--" {
				words = words[1:]
			}
			options, err := a.sshOptions(f, c, vm, server.Cluster)
			if err != nil {
				return err
			}
			return a.runSSH(ctx, c, append(options, words...))
		}))
	cmd.Long = cmd.Short + `.

It runs the system's ssh. The machine's host key is kept the first time, apart from other known hosts,
and checked from then on.`
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the machine is the command's
	flags.StringVarP(&f.user, "user", "l", "root", "to log in as")
	flags.StringVarP(&f.identity, "identity", "i", "", "file with the private key (default: those of ssh and its agent)")
	flags.IntVarP(&f.port, "port", "p", sshPort, "port of the machine")
	flags.StringArrayVar(&f.options, "ssh-option", nil, "further option of ssh, such as ForwardAgent=yes (repeatable)")
	must(cmd.MarkFlagFilename("identity"))
	cmd.ValidArgsFunction = a.complete(cloud.KindVM, false)
	return cmd
}

// sshOptions are ssh's arguments up to and with the machine's name.
func (a *app) sshOptions(f sshFlags, c *client.Client, vm api.VM, installation string) ([]string, error) {
	if _, err := portNumber(strconv.Itoa(f.port)); err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	known, err := knownHosts(installation, vm)
	if err != nil {
		return nil, err
	}
	id := strconv.Itoa(vm.ID)
	// Settings that the user's own configuration must not change come first: ssh takes the first it sees.
	options := []string{
		"-o", "ProxyCommand=" + shellQuote(program) + " vm tunnel " + id + " " + strconv.Itoa(f.port),
		"-o", "ProxyUseFdpass=no",
		"-o", "HostKeyAlias=hayloft-vm-" + id,
		"-o", "StrictHostKeyChecking=accept-new",
		"-o", `UserKnownHostsFile="` + strings.ReplaceAll(known, "%", "%%") + `"`,
		"-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR",
		"-l", f.user,
	}
	if f.identity != "" {
		options = append(options, "-i", f.identity, "-o", "IdentitiesOnly=yes")
	}
	for _, option := range f.options {
		options = append(options, "-o", option)
	}
	return append(options, "--", "hayloft-vm-"+id), nil
}

// knownHosts is the file with the host key of one machine. A machine that is made again is another one.
func knownHosts(installation string, vm api.VM) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = filepath.Join(os.TempDir(), fmt.Sprint("hayloft-", os.Getuid()))
	}
	directory := filepath.Join(cache, "hayloft", "known_hosts")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return "", fault.Errorf(fault.ClassOf(err), "directory for host keys: %w", err)
	}
	name := fmt.Sprintf("%s-vm-%d-%d", safeName(installation), vm.ID, vm.STime)
	return filepath.Join(directory, name), nil
}

func safeName(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' {
			return r
		}
		return '_'
	}, text)
}

// shellQuote is for ssh, which hands ProxyCommand to a shell after replacing %.
func shellQuote(path string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(path, "%", "%%"), "'", `'\''`) + "'"
}

// runSSH gives the terminal to ssh and ends as it does. The endpoint reaches the ProxyCommand in the
// environment, so that no shell reads it.
func (a *app) runSSH(ctx context.Context, c *client.Client, args []string) error {
	cmd := exec.CommandContext(ctx, "ssh", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = append(cmd.Environ(), client.EnvEndpoint+"="+c.Endpoint())
	if a.credentials != "" {
		credentials, err := filepath.Abs(a.credentials)
		if err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, client.EnvCredentials+"="+credentials)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return fault.Errorf(fault.Unsupported, "ssh is not installed")
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exitStatus(exit.ExitCode())
	}
	return fmt.Errorf("ssh: %w", err)
}
