package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/server"
	"hayloft/server/scheduler"
	"hayloft/store"
	"hayloft/store/etcd"
)

// serverFlags are the flags of `hayloft server`.
type serverFlags struct {
	stateDir    string
	socket      string
	fleetSocket string
	listen      string
	names       []string
	https       string
	endpoints   []string
	etcdCA      string
	etcdCert    string
	etcdKey     string
	policy      string
	interval    time.Duration
	limits      scheduler.Limits
	grace       time.Duration
	logLevel    string
}

func newServerCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the controller",
		Long: "Run the controller: it keeps the state of the cloud in etcd (its own, embedded, or a cluster's), takes requests and tells\n" +
			"the agents what to do. On one machine, `hayloft up` runs it together with an agent.",
		Example: "  hayloft server --state-dir /var/lib/hayloft/server --listen 0.0.0.0:9870 --name cloud.example.org\n" +
			"  hayloft server --etcd-endpoints https://etcd1:2379,https://etcd2:2379 --etcd-ca ca.crt --etcd-cert me.crt --etcd-key me.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runServer(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.stateDir, "state-dir", "/var/lib/hayloft/server", "directory of the state: store, authority, datastores")
	flags.StringVar(&f.socket, "socket", "/run/hayloft/api.sock", "unix socket of the API, for root of this machine")
	flags.StringVar(&f.fleetSocket, "fleet-socket", "", "unix socket for an agent on this machine")
	flags.StringVar(&f.listen, "listen", "", "host:port for agents; none: only the fleet socket")
	flags.StringSliceVar(&f.names, "name", nil, "further names and addresses under which agents reach this server")
	flags.StringVar(&f.https, "https", "", "host:port of the API with mutual TLS")
	flags.StringSliceVar(&f.endpoints, "etcd-endpoints", nil, "an etcd cluster to keep the state in; none: embedded")
	flags.StringVar(&f.etcdCA, "etcd-ca", "", "CA file of the etcd cluster")
	flags.StringVar(&f.etcdCert, "etcd-cert", "", "client certificate for the etcd cluster")
	flags.StringVar(&f.etcdKey, "etcd-key", "", "key of the client certificate")
	flags.StringVar(&f.policy, "sched-policy", string(scheduler.Striping), "where machines go: packing or striping")
	flags.DurationVar(&f.interval, "sched-interval", 0, "SCHED_INTERVAL, time between scheduling passes; 0: at once when there is something to place")
	flags.IntVar(&f.limits.MaxVM, "sched-max-vm", 0, "MAX_VM, machines looked at in a pass; 0: all")
	flags.IntVar(&f.limits.MaxDispatch, "sched-max-dispatch", 0, "MAX_DISPATCH, machines placed in a pass; 0: all")
	flags.IntVar(&f.limits.MaxHost, "sched-max-host", 0, "MAX_HOST, machines placed on one host in a pass; 0: all")
	flags.DurationVar(&f.grace, "host-grace", 20*time.Second, "how long a host may be away before its machines are UNKNOWN")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func newLogger(process, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fault.Errorf(fault.Invalid, "--log-level %q is none of debug, info, warn, error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})).With("process", process), nil
}

// untilSignal is a context that ends at the first SIGINT or SIGTERM.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

func runServer(ctx context.Context, f serverFlags) error {
	log, err := newLogger("server", f.logLevel)
	if err != nil {
		return err
	}
	policy := scheduler.Policy(f.policy)
	if policy != scheduler.Packing && policy != scheduler.Striping {
		return fault.Errorf(fault.Invalid, "--sched-policy %q is none of packing, striping", f.policy)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemoryLimit)
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	st, err := openStore(ctx, f, log)
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := server.New(ctx, server.Config{
		StateDir: f.stateDir, Store: st, FleetAddr: f.listen, FleetSocket: f.fleetSocket, FleetNames: f.names, Socket: f.socket,
		HTTPSAddr: f.https, Scheduler: scheduler.Scheduler{Policy: policy, Limits: f.limits}, Interval: f.interval,
		HostGrace: f.grace, Version: version, Log: log,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// softMemoryLimit is from where garbage is collected sooner, in bytes; more is used when more is needed.
const softMemoryLimit = 150 << 20

// electionTTL is long: nobody else can lead on the one embedded member, so a leader on a slow machine stays it. What a dead one left
// goes when the store is opened.
const electionTTL = time.Minute

func openStore(ctx context.Context, f serverFlags, log *slog.Logger) (store.Store, error) {
	if len(f.endpoints) == 0 {
		if err := os.MkdirAll(f.stateDir, 0o711); err != nil {
			return nil, err
		}
		return openEmbedded(ctx, etcd.Config{Dir: filepath.Join(f.stateDir, "etcd"), Logger: log, ElectionTTL: electionTTL})
	}
	cfg := etcd.ClientConfig{Endpoints: f.endpoints, Logger: log}
	if f.etcdCA != "" || f.etcdCert != "" {
		var err error
		if cfg.TLS, err = etcdTLS(f); err != nil {
			return nil, err
		}
	}
	return etcd.Connect(ctx, cfg)
}

// storeLimit is how long a server that was told to end may take before the next one gives up.
const storeLimit = 30 * time.Second

// openEmbedded opens the embedded store, when the process that had it before has let go of it.
func openEmbedded(ctx context.Context, cfg etcd.Config) (store.Store, error) {
	for deadline := time.Now().Add(storeLimit); ; {
		st, err := etcd.Embedded(ctx, cfg)
		if err == nil {
			return st, nil
		}
		if !fault.Is(err, fault.Busy) || time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func etcdTLS(f serverFlags) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.etcdCA != "" {
		pem, err := os.ReadFile(f.etcdCA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.Errorf(fault.Invalid, "--etcd-ca %s: no certificate in it", f.etcdCA)
		}
	}
	if f.etcdCert != "" {
		pair, err := tls.LoadX509KeyPair(f.etcdCert, f.etcdKey)
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "--etcd-cert: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
