// Package http is the repository driver for a web server: read-only, any that answers range requests. BASE_PATH is
// the URL that all objects are below; an object's name follows it, element by element.
//
// A source never mixes two versions of an object: each range is asked for with the ETag (or, without one, the
// modification time and length) that the object had when it was opened. Options of the datastore:
//
//	CA_FILE            certificates in PEM that the server's is checked against, instead of the system's
//	USER               name for basic authentication, with
//	PASSWORD_FILE      a file that only its owner can read
//	TOKEN_FILE         a file with a bearer token, instead of the two
//	PLAIN_CREDENTIALS  "YES" lets these be sent over http://, where everybody on the way can read them
//
// and those of package proxy: PROXY and PROXY_PASSWORD_FILE.
package http

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	nethttp "net/http"
	"net/url"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
	"hayloft/disk/repository/proxy"
	"hayloft/disk/repository/secret"
)

const (
	maxRequests  = 32 // at a time, each on a connection of its own over HTTP/1.1
	maxRedirects = 5
	dialTimeout  = 10 * time.Second
	idleTimeout  = 30 * time.Second
)

// Repository implements repository.Repository on a web server.
type Repository struct {
	label     string // as in errors
	base      *url.URL
	client    *nethttp.Client
	transport *nethttp.Transport
	login     login
	patience  attempt.Patience
	slots     chan struct{} // of requests under way
}

var _ repository.Repository = (*Repository)(nil)

// New describes the repository below the URL r.Path. Only files that options name are looked at; the server is not
// contacted yet. Errors: fault.Invalid for the URL and for options.
func New(r disk.Repository) (*Repository, error) {
	base, err := parseBase(r.Path)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: %w", r.ID, err)
	}
	label := fmt.Sprintf("datastore %d (%s)", r.ID, base)
	login, err := newLogin(r.Options, base.Scheme)
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", label, err)
	}
	roots, err := secret.Roots(r.Options["CA_FILE"])
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", label, err)
	}
	transport := &nethttp.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   dialTimeout,
		MaxIdleConnsPerHost:   maxRequests,
		IdleConnTimeout:       idleTimeout,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a range of what is compressed is not a range of the object
		ReadBufferSize:        64 << 10,
		ResponseHeaderTimeout: attempt.Default().Stall,
	}
	if err := proxy.Set(transport, r.Options); err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", label, err)
	}
	client := &nethttp.Client{Transport: transport, CheckRedirect: checkRedirect}
	return &Repository{label: label, base: base, client: client, transport: transport, login: login,
		patience: attempt.Default(), slots: make(chan struct{}, maxRequests)}, nil
}

func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("BASE_PATH is no URL: %w", bare(err))
	case u.User != nil:
		return nil, fmt.Errorf("BASE_PATH has a user in it: use USER and PASSWORD_FILE")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.Opaque != "":
		return nil, fmt.Errorf("BASE_PATH %q is not http://HOST/PATH or https://HOST/PATH", s)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("BASE_PATH %q has a query or fragment", s)
	}
	return u, nil
}

// checkRedirect lets a server send us elsewhere, but not from an encrypted place to one that is not. Credentials do
// not go along to another host: net/http drops them.
func checkRedirect(to *nethttp.Request, via []*nethttp.Request) error {
	if len(via) > maxRedirects {
		return fault.Errorf(fault.Unsupported, "more than %d redirects", maxRedirects)
	}
	if from := via[len(via)-1].URL; from.Scheme == "https" && to.URL.Scheme != "https" {
		return fault.Errorf(fault.Permission, "redirected from https to %s://%s", to.URL.Scheme, to.URL.Host)
	}
	return nil
}

// address of an object. name has passed CheckName, so that no element is "." or "..".
func (r *Repository) address(name string) *url.URL {
	u := *r.base
	elements := strings.Split(name, "/")
	plain := strings.TrimRight(u.Path, "/") + "/" + name
	for i, e := range elements {
		elements[i] = url.PathEscape(e)
	}
	u.RawPath = strings.TrimRight(r.base.EscapedPath(), "/") + "/" + strings.Join(elements, "/")
	u.Path = plain
	return &u
}

// object puts repository and object into err, keeping its class.
func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: object %s: %w", r.label, name, err)
}

// Create implements repository.Repository: always fault.Unsupported.
func (r *Repository) Create(_ context.Context, name string) (repository.Writer, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	return nil, fault.Errorf(fault.Unsupported, "%s: object %s: cannot be created, a repository over http is read-only", r.label, name)
}

// Delete implements repository.Repository: always fault.Unsupported.
func (r *Repository) Delete(_ context.Context, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	return fault.Errorf(fault.Unsupported, "%s: object %s: cannot be deleted, a repository over http is read-only", r.label, name)
}

// Stat implements repository.Repository. Modified is zero when the server does not say.
func (r *Repository) Stat(ctx context.Context, name string) (repository.Info, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Info{}, err
	}
	v, err := r.look(ctx, name)
	if err != nil {
		return repository.Info{}, r.object(name, err)
	}
	return repository.Info{Name: name, Size: v.size, Modified: v.modified}, nil
}

// Capacity implements repository.Repository. Nothing is known, so all of it is zero.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	return disk.Capacity{}, ctx.Err()
}

// Close closes the connections that are idle now; without it they end by themselves, half a minute after their use.
func (r *Repository) Close() error {
	r.transport.CloseIdleConnections()
	return nil
}
