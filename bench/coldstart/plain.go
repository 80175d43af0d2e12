package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"hayloft/image/contextdisk"
	"hayloft/internal/command"
	"hayloft/lab/httplab"
)

// guest is a machine of plain QEMU with a network in user space.
type guest struct {
	process *exec.Cmd
	ended   chan error
	port    int
	signer  ssh.Signer
	log     string
}

const guestName = "cold-0"

// boot starts QEMU on an overlay whose backing file is named as QEMU names it.
func (b *bench) boot(ctx context.Context, s *subject, dir, backing, driveOptions string) (*guest, error) {
	g := &guest{ended: make(chan error, 1), log: filepath.Join(dir, "qemu.log")}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if g.signer, err = ssh.NewSignerFromKey(private); err != nil {
		return nil, err
	}
	contextPath := filepath.Join(dir, "context.img")
	text := "ETH0_IP='10.0.2.15'\nETH0_MAC='02:00:0a:00:02:0f'\nETH0_MASK='255.255.255.0'\nETH0_GATEWAY='10.0.2.2'\nETH0_DNS='10.0.2.3'\n" +
		"SET_HOSTNAME='" + guestName + "'\nSSH_PUBLIC_KEY='" + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(g.signer.PublicKey()))) + "'\nNETWORK='YES'\n"
	if err := contextdisk.Write(ctx, contextPath, map[string][]byte{"context.sh": []byte(text)}, 0o600); err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, "disk.qcow2")
	_, err = command.Exec{}.Run(ctx, command.Cmd{Name: "qemu-img",
		Args: []string{"create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, disk, strconv.FormatInt(s.index.Length(), 10)}})
	if err != nil {
		return nil, err
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g.port = probe.Addr().(*net.TCPAddr).Port
	probe.Close()
	log, err := os.Create(g.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g.process = exec.Command("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", "tcg,tb-size=32",
		"-cpu", "max", "-m", strconv.Itoa(s.memoryMB), "-smp", "1",
		"-drive", "if=virtio,format=qcow2,discard=unmap,file="+disk+driveOptions,
		"-drive", "if=virtio,format=raw,readonly=on,file="+contextPath,
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", g.port),
		"-device", "virtio-net-pci,netdev=net,mac=02:00:0a:00:02:0f,romfile=", "-device", "virtio-rng-pci", "-serial", "file:"+filepath.Join(dir, "serial.log"))
	g.process.Stdout, g.process.Stderr = log, log
	if err := g.process.Start(); err != nil {
		return nil, err
	}
	go func() { g.ended <- g.process.Wait() }()
	return g, nil
}

func (g *guest) end() {
	_ = g.process.Process.Kill()
	<-g.ended
}

// answers waits until the guest has said its name over SSH.
func (g *guest) answers(ctx context.Context) (time.Time, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("never reached")
	for {
		select {
		case err := <-g.ended:
			g.ended <- err
			said, _ := os.ReadFile(g.log)
			return time.Time{}, fmt.Errorf("QEMU ended: %w: %s", err, said)
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%w: %w", ctx.Err(), last)
		case <-tick.C:
		}
		if last = g.login(); last == nil {
			return time.Now(), nil
		}
	}
}

func (g *guest) login() error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(g.port)), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	// QEMU's network takes the connection before the guest does, and a greeting may be long in coming.
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	c, channels, requests, err := ssh.NewClientConn(conn, "guest", &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(g.signer)},
		Config:          ssh.Config{KeyExchanges: []string{"curve25519-sha256", "ecdh-sha2-nistp256"}, Ciphers: []string{"chacha20-poly1305@openssh.com", "aes128-ctr"}},
		HostKeyCallback: ssh.InsecureIgnoreHostKey()}) // it was made a moment ago; nobody could know it
	if err != nil {
		return err
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	out, err := session.Output("hostname")
	if err == nil && strings.TrimSpace(string(out)) != guestName {
		err = fmt.Errorf("it says that it is %q", out)
	}
	return err
}

// plain measures from before prepare to the answer of a machine on what prepare names.
func (b *bench) plain(ctx context.Context, s *subject, prepare func(ctx context.Context, dir string, web *httplab.Server) (backing, driveOptions string, err error)) (float64, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	dir, err := os.MkdirTemp(b.dir, "plain-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	web, err := b.serve(s, nil)
	if err != nil {
		return 0, 0, err
	}
	defer web.Close()
	began := time.Now()
	backing, driveOptions, err := prepare(ctx, dir, web)
	if err != nil {
		return 0, 0, err
	}
	g, err := b.boot(ctx, s, dir, backing, driveOptions)
	if err != nil {
		return 0, 0, err
	}
	defer g.end()
	answered, err := g.answers(ctx)
	return answered.Sub(began).Seconds(), web.Sent(), err
}

func (b *bench) copyFirst(ctx context.Context, s *subject) (float64, int64, error) {
	return b.plain(ctx, s, func(ctx context.Context, dir string, web *httplab.Server) (string, string, error) {
		path := filepath.Join(dir, "image.raw")
		return path, "", download(ctx, web, path)
	})
}

// copyOnRead is QEMU's own: the overlay keeps what was read over https.
func (b *bench) copyOnRead(ctx context.Context, s *subject) (float64, int64, error) {
	return b.plain(ctx, s, func(_ context.Context, _ string, web *httplab.Server) (string, string, error) {
		return `json:{"driver":"raw","file":{"driver":"https","sslverify":false,"url":"` + web.URL + "/" + objectName + `"}}`, ",copy-on-read=on", nil
	})
}

func download(ctx context.Context, web *httplab.Server, path string) error {
	roots := x509.NewCertPool()
	certificate, err := os.ReadFile(web.CAFile)
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(certificate)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, web.URL+"/"+objectName, nil)
	if err != nil {
		return err
	}
	reply, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return errors.New(reply.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{file}, reply.Body, make([]byte, 1<<20))
	return errors.Join(err, file.Close())
}
