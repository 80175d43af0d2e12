package fleet

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// Prober finds out from inside the namespace when machines answer over SSH. It costs the machines next to
// nothing until they can answer: it is the bridge that tells when a machine has sent its first frame, only then
// connections are tried, and the machine's address is never asked for in broadcasts.
type Prober struct {
	private ed25519.PrivateKey
	signer  ssh.Signer
	public  string
	dialers *dialers
	links   *netlink.Handle
	ns      netns.NsHandle
	cancel  chan struct{}
	watcher sync.WaitGroup

	mu    sync.Mutex
	heard map[string]chan struct{} // by MAC; closed when the bridge has learned it
}

// Target is a machine to probe.
type Target struct {
	Name    string // that it must say
	IP      string
	MAC     string
	Bridge  string
	Address bool // it must also say that eth0 has IP
}

const (
	probeThreads = 8
	silence      = 5 * time.Second        // after which a machine is tried though nothing was heard of it
	firstPause   = 100 * time.Millisecond // between tries, growing to longestPause
	longestPause = time.Second
	connectLimit = 2 * time.Second
	loginLimit   = time.Minute
)

func newProber(n *Namespace) (*Prober, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &Prober{private: private, cancel: make(chan struct{}), heard: map[string]chan struct{}{}}
	if p.signer, err = ssh.NewSignerFromKey(private); err != nil {
		return nil, err
	}
	p.public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p.signer.PublicKey())))
	if p.ns, err = netns.GetFromPath(n.path()); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", n.Name, err)
	}
	if p.links, err = netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE); err != nil {
		p.ns.Close()
		return nil, err
	}
	if p.dialers, err = newDialers(n, probeThreads); err != nil {
		p.links.Close()
		p.ns.Close()
		return nil, err
	}
	updates := make(chan netlink.NeighUpdate, 64)
	err = netlink.NeighSubscribeWithOptions(updates, p.cancel, netlink.NeighSubscribeOptions{Namespace: &p.ns, ReceiveBufferSize: 1 << 20})
	if err != nil {
		p.dialers.close()
		p.links.Close()
		p.ns.Close()
		return nil, err
	}
	p.watcher.Go(func() { p.listen(updates) })
	return p, nil
}

// Key is the public key of this run, for SSH_PUBLIC_KEY.
func (p *Prober) Key() string { return p.public }

// writeKey writes the private key for ssh(1).
func (p *Prober) writeKey(path string) error {
	block, err := ssh.MarshalPrivateKey(p.private, "")
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}

// Close ends the prober's threads; all Answers must have returned.
func (p *Prober) Close() {
	close(p.cancel)
	p.watcher.Wait()
	p.dialers.close()
	p.links.Close()
	p.ns.Close()
}

func (p *Prober) listen(updates <-chan netlink.NeighUpdate) {
	for u := range updates {
		if u.Type == unix.RTM_NEWNEIGH && u.Family == unix.AF_BRIDGE && len(u.HardwareAddr) == 6 {
			p.hear(u.HardwareAddr)
		}
	}
}

func (p *Prober) hear(mac net.HardwareAddr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.heardOf(mac)
	select {
	case <-c:
	default:
		close(c)
	}
}

func (p *Prober) heardOf(mac net.HardwareAddr) chan struct{} {
	c := p.heard[string(mac)]
	if c == nil {
		c = make(chan struct{})
		p.heard[string(mac)] = c
	}
	return c
}

// Answers waits until the machine has answered as itself, and returns when that was. It gives up with ctx; the
// error then holds the last thing that went wrong.
func (p *Prober) Answers(ctx context.Context, t Target) (time.Time, error) {
	mac, err := net.ParseMAC(t.MAC)
	if err != nil {
		return time.Time{}, err
	}
	if err := p.know(t, mac); err != nil {
		return time.Time{}, err
	}
	p.mu.Lock()
	heard := p.heardOf(mac)
	p.mu.Unlock()
	last := fmt.Errorf("it has sent nothing")
	timer := time.NewTimer(silence)
	defer timer.Stop()
	for pause := firstPause; ; pause = min(pause*3/2, longestPause) {
		select {
		case <-heard:
			heard = nil // once
		case <-timer.C:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no answer from %s: %w", t.IP, last)
		}
		if last = p.try(ctx, t); last == nil {
			return time.Now(), nil
		}
		timer.Reset(pause)
	}
}

// know tells the kernel where the machine is.
func (p *Prober) know(t Target, mac net.HardwareAddr) error {
	bridge, err := p.links.LinkByName(t.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", t.Bridge, err)
	}
	return p.links.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(t.IP).To4(), HardwareAddr: mac})
}

func (p *Prober) try(ctx context.Context, t Target) error {
	conn, err := p.dialers.dial(ctx, net.JoinHostPort(t.IP, "22"), connectLimit)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(loginLimit)); err != nil {
		return err
	}
	// What is cheapest for an emulated processor comes first.
	c, channels, requests, err := ssh.NewClientConn(conn, t.IP, &ssh.ClientConfig{
		Config:            ssh.Config{KeyExchanges: []string{"curve25519-sha256", "ecdh-sha2-nistp256"}, Ciphers: []string{"chacha20-poly1305@openssh.com", "aes128-ctr"}},
		User:              "root",
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(p.signer)},
		HostKeyCallback:   ssh.InsecureIgnoreHostKey(), // it was made a moment ago; nobody could know it
		HostKeyAlgorithms: []string{ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519, ssh.KeyAlgoRSASHA256},
	})
	if err != nil {
		return fmt.Errorf("ssh: %w", err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	return t.check(client)
}

func (t Target) check(client *ssh.Client) error {
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("ssh: %w", err)
	}
	defer session.Close()
	ask := "hostname"
	if t.Address {
		ask = "hostname && ip -4 -o addr show dev eth0"
	}
	var complaint bytes.Buffer
	session.Stderr = &complaint
	said, err := session.Output(ask)
	if err != nil {
		return fmt.Errorf("ssh: %s: %w: %s", ask, err, strings.TrimSpace(complaint.String()))
	}
	name, rest, _ := strings.Cut(string(said), "\n")
	if name != t.Name {
		return fmt.Errorf("%s says it is %q, not %q", t.IP, name, t.Name)
	}
	if t.Address && !strings.Contains(rest, "inet "+t.IP+"/") {
		return fmt.Errorf("%s: eth0 has not got that address: %q", t.IP, rest)
	}
	return nil
}
