package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hayloft/agent"
	"hayloft/cloud/fault"
	"hayloft/disk/repository/drivers"
	"hayloft/disk/way"
	"hayloft/hypervisor"
	"hayloft/hypervisor/dummy"
	"hayloft/hypervisor/lxc"
	"hayloft/hypervisor/qemu"
	"hayloft/internal/command"
	"hayloft/internal/netspace"
	"hayloft/network/bridge"
)

// agentFlags are the flags of `hayloft agent`.
type agentFlags struct {
	name        string
	stateDir    string
	server      string
	token       string
	tokenFile   string
	storage     storageFlags
	netns       string
	instance    string
	hypervisors []string
	accel       string
	cpu         float64
	memoryMB    int64
	uidBase     int
	gid         int
	prepares    int
	starts      int
	bootCores   float64
	logLevel    string
}

func (f *agentFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "host", hostName(), "this host's name")
	f.storage.register(cmd)
	flags.StringVar(&f.netns, "netns", "", "network namespace to work in: bridges and machines live there; none: the machine's own")
	flags.StringVar(&f.instance, "instance", "hayloft", "tag of what is made on this host: bridges, rules, control groups")
	flags.StringSliceVar(&f.hypervisors, "hypervisors", []string{"qemu", "lxc"}, "what this host runs: qemu, lxc, dummy (simulated machines)")
	flags.StringVar(&f.accel, "accel", "", "QEMU's accelerator, kvm or tcg; none: found out by trying")
	flags.Float64Var(&f.cpu, "cpu", 0, "cores to offer; 0: what the machine has")
	flags.Int64Var(&f.memoryMB, "memory", 0, "MB of memory to offer; 0: what the machine has")
	flags.IntVar(&f.uidBase, "uid-base", 0, "machine N runs as user UID-BASE + N; 0: a number above all others")
	flags.IntVar(&f.gid, "gid", 0, "group of all machines; 0: a number above all others")
	flags.IntVar(&f.prepares, "prepares", 0, "disks prepared at a time; 0: twice the cores")
	flags.IntVar(&f.starts, "starts", 0, "machines started at a time; 0: 8")
	flags.Float64Var(&f.bootCores, "boot-cores", 0, "cores that booting machines may want together before the next waits; 0: twice the cores, -1: no pacing")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

func newAgentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long: "Run the agent of this host: it makes the machines that the server assigns to it and reports what is. Machines go on when\n" +
			"it ends, and are adopted when it comes back.",
		Example: "  hayloft host create node1                  # on the server; prints a token\n" +
			"  hayloft agent --host node1 --server cloud.example.org:9870 --token TOKEN",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgent(cmd.Context(), f) },
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.stateDir, "state-dir", "/var/lib/hayloft/agent", "directory of the agent's database and machines")
	flags.StringVar(&f.server, "server", "", "host:port of the server, or unix:PATH")
	flags.StringVar(&f.token, "token", "", "one-time token to enroll with (seen by others in the process list: prefer --token-file)")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the token")
	return cmd
}

func runAgent(ctx context.Context, f agentFlags) error {
	if err := netspace.Enter(f.netns); err != nil {
		return err
	}
	log, err := newLogger("agent", f.logLevel)
	if err != nil {
		return err
	}
	if f.server == "" {
		return fault.Errorf(fault.Invalid, "--server is needed: host:port, or unix:PATH")
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	cfg, closeDrivers, err := f.config(ctx, log)
	if err != nil {
		return err
	}
	defer closeDrivers()
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// lockLimit is how long an agent that was told to end may take before the next one gives up.
const lockLimit = 30 * time.Second

// config makes this process the host's only agent, opens the drivers and puts the configuration together.
// The function that it returns closes the drivers and lets another agent begin.
func (f *agentFlags) config(ctx context.Context, log *slog.Logger) (agent.Config, func(), error) {
	cfg := agent.Config{Name: f.name, StateDir: f.stateDir, Server: f.server, Token: f.token, Version: version, Log: log,
		CPU: f.cpu, Memory: f.memoryMB << 20, UIDBase: f.uidBase, GID: f.gid, Prepares: f.prepares, Starts: f.starts, BootCores: f.bootCores}
	if cfg.GID == 0 {
		cfg.GID = agent.DefaultGID
	}
	if f.tokenFile != "" {
		text, err := os.ReadFile(f.tokenFile)
		if err != nil && !os.IsNotExist(err) {
			return cfg, nil, err
		}
		cfg.Token = strings.TrimSpace(string(text))
	}
	if path, ok := strings.CutPrefix(f.server, "unix:"); ok {
		cfg.Server = "localhost:0"
		cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	if err := os.MkdirAll(f.stateDir, 0o711); err != nil {
		return cfg, nil, err
	}
	unlock, err := agent.Lock(ctx, f.stateDir, lockLimit)
	if err != nil {
		return cfg, nil, err
	}
	hypervisors, closeAll, err := f.drivers(log)
	if err != nil {
		unlock()
		return cfg, nil, err
	}
	closeDrivers := func() {
		closeAll()
		unlock()
	}
	cfg.Hypervisors = hypervisors
	if cfg.Network, err = bridge.New(bridge.Config{Instance: f.instance, Log: log}); err != nil {
		closeDrivers()
		return cfg, nil, err
	}
	data, err := newDataPath(f.stateDir, log)
	if err != nil {
		closeDrivers()
		return cfg, nil, err
	}
	closeRest := closeDrivers
	closeDrivers = func() {
		if err := data.close(); err != nil {
			log.Warn("data path does not end", "error", err)
		}
		closeRest()
	}
	repositories := &drivers.Pool{}
	closeData := closeDrivers
	closeDrivers = func() {
		if err := repositories.Close(); err != nil {
			log.Warn("repositories do not end", "error", err)
		}
		closeData()
	}
	disks := way.Config{Runner: command.Exec{}, Log: log, GID: cfg.GID, Host: f.name, Data: data, Open: repositories.Open}
	if cfg.Storage, err = f.storage.open(ctx, f.stateDir, f.instance, &disks, log); err != nil {
		closeDrivers()
		return cfg, nil, err
	}
	host, err := way.New(disks)
	if err != nil {
		closeDrivers()
		return cfg, nil, err
	}
	cfg.Way = host
	exports, err := host.Exports(ctx)
	if err != nil {
		closeDrivers()
		return cfg, nil, err
	}
	if exports {
		data.begin()
	}
	return cfg, closeDrivers, nil
}

// drivers opens the named hypervisors. One whose programs are not installed is left out with a warning;
// none at all is an error.
func (f *agentFlags) drivers(log *slog.Logger) (map[string]hypervisor.Driver, func(), error) {
	open := map[string]func(dir string) (closer, error){
		"qemu": func(dir string) (closer, error) {
			return qemu.New(qemu.Config{StateDir: dir, Accel: f.accel, CgroupRoot: f.instance, GID: f.gid, Log: log})
		},
		"lxc": func(dir string) (closer, error) {
			return lxc.New(lxc.Config{StateDir: dir, CgroupRoot: f.instance, Log: log})
		},
		"dummy": func(dir string) (closer, error) { return dummy.New(dummy.Config{StateDir: dir, Log: log}) },
	}
	found := map[string]hypervisor.Driver{}
	var opened []closer
	closeAll := func() {
		for _, d := range opened {
			_ = d.Close()
		}
	}
	for _, name := range f.hypervisors {
		make, ok := open[name]
		if !ok {
			closeAll()
			return nil, nil, fault.Errorf(fault.Invalid, "--hypervisors: %q is none of qemu, lxc, dummy", name)
		}
		driver, err := make(filepath.Join(f.stateDir, name))
		if fault.Is(err, fault.Unsupported) {
			log.Warn("hypervisor left out", "hypervisor", name, "error", err)
			continue
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		opened = append(opened, driver)
		found[name] = driver
	}
	if len(found) == 0 {
		return nil, nil, fault.Errorf(fault.Unsupported, "none of the hypervisors %v can be used here", f.hypervisors)
	}
	return found, closeAll, nil
}

// closer is a driver that can be let go of; its machines go on.
type closer interface {
	hypervisor.Driver
	Close() error
}
