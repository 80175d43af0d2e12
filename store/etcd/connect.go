package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"hayloft/cloud/fault"
)

// ClientConfig says how to reach an etcd cluster that runs elsewhere.
type ClientConfig struct {
	Endpoints []string    // https://host:port, http://host:port, unix://path, or host:port
	TLS       *tls.Config // required for https and used for host:port
	Username  string      // with Password, when the cluster wants it
	Password  string
	Prefix    string       // of all keys; "/hayloft/v1/" when empty
	Logger    *slog.Logger // for the client's warnings and errors; none when nil

	// ElectionTTL is how long a leader that died keeps others waiting, at least 2 s; 10 s when zero.
	ElectionTTL time.Duration
	// DialTimeout bounds the first contact besides Connect's context; 5 s when zero.
	DialTimeout time.Duration
}

// Connect returns a store on an etcd cluster. It fails with fault.Unavailable, naming the endpoints, when
// none answers in time, and with fault.Permission when they do not let this client in.
func Connect(ctx context.Context, cfg ClientConfig) (*Store, error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	name := "etcd at " + strings.Join(cfg.Endpoints, ", ")
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		Username:             cfg.Username,
		Password:             cfg.Password,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               loggerBuilder{to: cfg.Logger}.zap(),
	})
	if err != nil {
		return nil, fault.Errorf(classOf(err), "%s: %w", name, err)
	}
	// The client dials when it is used; ask for one key to know.
	if _, err := client.Get(ctx, cfg.Prefix, clientv3.WithKeysOnly(), clientv3.WithPrefix(), clientv3.WithLimit(1)); err != nil {
		client.Close()
		class := classOf(err)
		if ctx.Err() != nil {
			class = fault.Unavailable
			err = fmt.Errorf("no answer: %w%s", err, diagnosis(cfg.Endpoints))
		}
		return nil, fault.Errorf(class, "%s: %w", name, err)
	}
	watcher := func() clientv3.Watcher { return clientv3.NewWatcher(client) }
	return newStore(client, watcher, cfg.Prefix, name, cfg.ElectionTTL, nil), nil
}

// diagnosis says what a bare connection to each endpoint meets, as etcd's client only reports that its time
// was up.
func diagnosis(endpoints []string) (found string) {
	for _, e := range endpoints {
		network, address := "tcp", e
		if u, err := url.Parse(e); err == nil && u.Host+u.Path != "" {
			address = u.Host
			if u.Scheme == "unix" {
				network, address = "unix", u.Host+u.Path
			}
		}
		conn, err := net.DialTimeout(network, address, 500*time.Millisecond)
		if err != nil {
			found += "; " + err.Error()
			continue
		}
		conn.Close()
		found += "; " + e + " accepts connections but etcd does not answer there"
	}
	return found
}

func (c *ClientConfig) normalize() error {
	if len(c.Endpoints) == 0 {
		return fault.Errorf(fault.Invalid, "etcd: no endpoints given")
	}
	for _, e := range c.Endpoints {
		if err := checkEndpoint(e, c.TLS != nil); err != nil {
			return err
		}
	}
	if c.Password != "" && c.Username == "" {
		return fault.Errorf(fault.Invalid, "etcd: a password without a user name")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	var err error
	if c.Prefix, err = normalPrefix(c.Prefix); err != nil {
		return err
	}
	c.ElectionTTL, err = normalTTL(c.ElectionTTL)
	return err
}

func checkEndpoint(endpoint string, secured bool) error {
	if _, port, err := net.SplitHostPort(endpoint); err == nil && port != "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return fault.Errorf(fault.Invalid, "etcd endpoint: %w", err)
	}
	switch {
	case u.Scheme == "unix":
		return nil
	case u.Scheme == "https" && u.Port() != "" && !secured:
		return fault.Errorf(fault.Invalid, "etcd endpoint %s: no TLS configuration given", endpoint)
	case u.Scheme == "http" && u.Port() != "" && secured:
		return fault.Errorf(fault.Invalid, "etcd endpoint %s would not use the TLS configuration given: https wanted", endpoint)
	case (u.Scheme == "http" || u.Scheme == "https") && u.Port() != "":
		return nil
	}
	return fault.Errorf(fault.Invalid, "etcd endpoint %q: want https://host:port, http://host:port or host:port", endpoint)
}
