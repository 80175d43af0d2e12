package server

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/wire/pki"
)

// listenUnix listens on a socket that only its owner may connect to. A socket that a dead server left is
// replaced; one that a living server listens on is fault.Busy.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fault.Errorf(fault.Busy, "socket %s: another server listens on it", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fault.Errorf(fault.Exists, "socket %s: there is something else of that name", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Bound under a name that nobody knows, so that nobody connects before the mode is right.
	hidden := filepath.Join(filepath.Dir(path), ".api-"+randomID()[:8])
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "socket %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	err = os.Chmod(hidden, 0o600)
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		_ = listener.Close()
		_ = os.Remove(hidden)
		return nil, err
	}
	return &unixListener{listener, path}, nil
}

type unixListener struct {
	*net.UnixListener
	path string
}

// Close removes the socket's name too.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	_ = os.Remove(l.path)
	return err
}

// listenTLS listens for administrators with a certificate of this cluster.
func (s *Server) listenTLS() (net.Listener, error) {
	config := pki.ServerTLS(s.authority, append([]string{"localhost", "127.0.0.1", "::1", s.cfg.Name}, s.cfg.FleetNames...)...)
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.NextProtos = []string{"http/1.1"} // tunnels take connections over
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if verify != nil {
			if err := verify(state); err != nil {
				return err
			}
		}
		id, err := pki.ParseIdentity(state.PeerCertificates[0].Subject.CommonName)
		if err != nil || id.Role != pki.Admin {
			return fault.Errorf(fault.Permission, "only administrators' certificates are good for this")
		}
		return nil
	}
	listener, err := tls.Listen("tcp", s.cfg.HTTPSAddr, config)
	if err != nil {
		return nil, fault.Errorf(fault.Busy, "address of the interface: %w", err)
	}
	return listener, nil
}

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}
