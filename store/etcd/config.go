package etcd

import (
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"hayloft/cloud/fault"
)

// Config says how to run etcd in this process. Dir alone makes a store for one process that listens
// nowhere; PeerURL, ClientURL and Members make it a member of a cluster.
type Config struct {
	Dir    string       // data directory, mode 0700; made when it does not exist
	Name   string       // of this member; "hayloft" when empty
	Prefix string       // of all keys; "/hayloft/v1/" when empty
	Logger *slog.Logger // for etcd's warnings and errors; none when nil

	// ElectionTTL is how long a leader that died keeps others waiting, at least 2 s; 10 s when zero.
	ElectionTTL time.Duration

	PeerURL   string            // where other members reach this one; without it the member stays alone
	ClientURL string            // where Connect reaches it, http(s)://host:port or unix://path; "" for nowhere
	Members   map[string]string // name to PeerURL of all members when the cluster forms; only read then
	Join      bool              // the cluster exists already and was told about this member
	PeerTLS   TLSFiles          // required unless PeerURL is on loopback
	ClientTLS TLSFiles          // required unless ClientURL is on loopback or a unix socket
	// Heartbeat is between members; an election needs ten of them. 100 ms when zero, 20 ms when alone.
	Heartbeat time.Duration
}

// TLSFiles are PEM files. Both ends must show a certificate of the CA.
type TLSFiles struct {
	Cert, Key, CA string
}

func (f TLSFiles) info() transport.TLSInfo {
	if f == (TLSFiles{}) {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ClientCertAuth: true}
}

const (
	// nowhere stands where etcd wants an address of a member that has none; nobody listens or connects.
	nowhere = "127.0.0.1:2380"
	// maxPrefix leaves room for the prefix in store.ItemOverhead.
	maxPrefix = 64
	minTTL    = 2 * time.Second

	quotaBytes = 2<<30 - 1<<20 // not exactly etcd's default, for which it maps 10 GiB
	// requestBytes is above store.MaxTxnSize by etcd's own overhead.
	requestBytes = 1536 * 1024
	// snapshotCount and catchUp bound the requests that etcd keeps in memory.
	snapshotCount = 1000
	catchUp       = 500
	// retention is how many revisions a watch may lag behind; etcd compacts every five minutes.
	retention = "10000"
)

func (c *Config) alone() bool { return c.PeerURL == "" }

// normalize fills in defaults and refuses what cannot work.
func (c *Config) normalize() error {
	var err error
	if c.Dir == "" {
		return fault.Errorf(fault.Invalid, "embedded etcd: no data directory given")
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fault.As(fault.Invalid, err)
	}
	if c.Name == "" {
		c.Name = "hayloft"
	}
	if strings.ContainsAny(c.Name, "=, \n") {
		return fault.Errorf(fault.Invalid, "embedded etcd: member name %q: no '=', ',', spaces or newlines", c.Name)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Prefix, err = normalPrefix(c.Prefix); err != nil {
		return err
	}
	if c.ElectionTTL, err = normalTTL(c.ElectionTTL); err != nil {
		return err
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 100 * time.Millisecond
		if c.alone() {
			c.Heartbeat = 20 * time.Millisecond
		}
	}
	if c.Heartbeat < time.Millisecond || c.Heartbeat > 5*time.Second {
		return fault.Errorf(fault.Invalid, "embedded etcd: heartbeat of %v: 1 ms to 5 s", c.Heartbeat)
	}
	if c.alone() && (c.Join || len(c.Members) > 1) {
		return fault.Errorf(fault.Invalid, "embedded etcd: a member of a cluster needs a PeerURL")
	}
	return nil
}

func normalPrefix(prefix string) (string, error) {
	if prefix == "" {
		return defaultPrefix, nil
	}
	if len(prefix) > maxPrefix || !strings.HasSuffix(prefix, "/") {
		return "", fault.Errorf(fault.Invalid, "etcd key prefix %q: at most %d bytes, and a slash at the end", prefix, maxPrefix)
	}
	return prefix, nil
}

func normalTTL(ttl time.Duration) (time.Duration, error) {
	if ttl == 0 {
		return defaultElectionTTL, nil
	}
	if ttl < minTTL {
		return 0, fault.Errorf(fault.Invalid, "etcd election TTL of %v: at least %v", ttl, minTTL)
	}
	return ttl, nil
}

// server is the configuration in etcd's terms.
func (c *Config) server(logger loggerBuilder, options ...grpc.ServerOption) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = c.Dir, c.Name
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger.zap())
	cfg.GRPCAdditionalServerOptions = options
	cfg.EnableGRPCGateway = false
	cfg.QuotaBackendBytes, cfg.MaxRequestBytes = quotaBytes, requestBytes
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = snapshotCount, catchUp
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, retention
	cfg.TickMs = uint(c.Heartbeat / time.Millisecond)
	cfg.ElectionMs = 10 * cfg.TickMs
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil, nil
	cfg.PeerTLSInfo, cfg.ClientTLSInfo = c.PeerTLS.info(), c.ClientTLS.info()
	peer := &url.URL{Scheme: "http", Host: nowhere}
	if !c.alone() {
		var err error
		if peer, err = listenURL("peer", c.PeerURL, c.PeerTLS); err != nil {
			return nil, err
		}
		cfg.ListenPeerUrls = []url.URL{*peer}
	}
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	if c.ClientURL != "" {
		client, err := listenURL("client", c.ClientURL, c.ClientTLS)
		if err != nil {
			return nil, err
		}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	}
	cfg.InitialCluster = c.initialCluster(peer.String())
	if c.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	return cfg, nil
}

func (c *Config) initialCluster(own string) string {
	members := []string{c.Name + "=" + own}
	for name, peer := range c.Members {
		if name != c.Name {
			members = append(members, name+"="+peer)
		}
	}
	sort.Strings(members)
	return strings.Join(members, ",")
}

// listenURL refuses addresses on which data would pass unencrypted beyond this machine.
func listenURL(what, address string, files TLSFiles) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "embedded etcd: %s address: %w", what, err)
	}
	secured := files != (TLSFiles{})
	switch {
	case u.Scheme == "unix" && what == "client" && u.Path != "":
		return u, nil
	case u.Scheme == "https" && u.Port() != "" && secured:
		return u, nil
	case u.Scheme == "https" && u.Port() != "":
		return nil, fault.Errorf(fault.Invalid, "embedded etcd: %s address %s needs certificates", what, address)
	case u.Scheme == "http" && u.Port() != "" && secured:
		return nil, fault.Errorf(fault.Invalid, "embedded etcd: %s address %s would not use the certificates given: https wanted", what, address)
	case u.Scheme == "http" && u.Port() != "" && onLoopback(u.Hostname()):
		return u, nil
	case u.Scheme == "http" && u.Port() != "":
		return nil, fault.Errorf(fault.Invalid, "embedded etcd: %s address %s is unencrypted and not on loopback: https and certificates wanted", what, address)
	}
	return nil, fault.Errorf(fault.Invalid, "embedded etcd: %s address %q: want https://host:port or http://127.0.0.1:port", what, address)
}

func onLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
