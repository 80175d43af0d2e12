// Package client speaks the JSON interface of package api: over the unix socket of a server on the same
// machine, or over https with mutual TLS. Errors of the server come back with their class and their words;
// a server that cannot be reached is of class fault.Unavailable.
package client

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"hayloft/cloud/fault"
)

// DefaultEndpoint is where `hayloft up` and `hayloft server` listen when they are not told otherwise.
const DefaultEndpoint = "unix:///run/hayloft/api.sock"

// Environment variables that New falls back to.
const (
	EnvEndpoint    = "HAYLOFT_ENDPOINT"
	EnvCredentials = "HAYLOFT_CREDENTIALS"
)

// Config says where the server is.
type Config struct {
	// Endpoint is unix:///path/api.sock or https://host:port. "" means $HAYLOFT_ENDPOINT, and
	// DefaultEndpoint if that is empty too.
	Endpoint string
	// Credentials is a directory with ca.crt, client.crt and client.key, for https. "" means
	// $HAYLOFT_CREDENTIALS.
	Credentials string
}

// Client is safe for concurrent use. Close gives its idle connections back.
type Client struct {
	endpoint  string
	socket    string // path, for unix
	address   string // host:port, for https
	tls       *tls.Config
	http      *http.Client
	transport *http.Transport
}

// New checks the configuration and reads the credentials; it does not connect. Errors: fault.Invalid for
// an endpoint or credentials of a wrong form, fault.NotFound and fault.Permission for files that cannot
// be read.
func New(config Config) (*Client, error) {
	endpoint := first(config.Endpoint, os.Getenv(EnvEndpoint), DefaultEndpoint)
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "endpoint %q: want unix:///path/api.sock or https://host:port", endpoint)
	}
	c := &Client{endpoint: endpoint}
	switch {
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		c.socket, c.address = u.Path, "hayloft"
	case u.Scheme == "https" && u.Hostname() != "" && strings.Trim(u.Path, "/") == "":
		c.address = u.Host
		if u.Port() == "" {
			c.address = net.JoinHostPort(u.Hostname(), "443")
		}
		if c.tls, err = readCredentials(first(config.Credentials, os.Getenv(EnvCredentials))); err != nil {
			return nil, err
		}
	default:
		return nil, fault.Errorf(fault.Invalid, "endpoint %q: want unix:///path/api.sock or https://host:port", endpoint)
	}
	c.transport = &http.Transport{DialContext: c.dial, DialTLSContext: c.dial, MaxIdleConnsPerHost: 16}
	c.http = &http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return c, nil
}

// Endpoint is where the client connects to, as the user would write it.
func (c *Client) Endpoint() string { return c.endpoint }

// Close ends idle connections. Watches and tunnels are ended by their own contexts and Close.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// dial connects to the one server of the client, whatever the address asked for. For https the handshake
// is done when it returns.
func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if c.tls == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		if err != nil {
			return nil, c.unreachable(err)
		}
		return conn, nil
	}
	conn, err := (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return conn, nil
}

func (c *Client) url(path string, query url.Values) string {
	scheme := "http"
	if c.tls != nil {
		scheme = "https"
	}
	u := scheme + "://" + c.address + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
