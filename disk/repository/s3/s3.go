// Package s3 is the repository driver for a bucket of an S3 server. BASE_PATH is https://HOST[:PORT]/BUCKET[/PREFIX]; an
// object's key is the prefix and its name. Options of the datastore:
//
//	ACCESS_KEY_ID      who we are; without it only what everybody may read can be read
//	SECRET_KEY_FILE    a file with the secret key, that only its owner can read
//	REGION             as requests are signed for; "us-east-1"
//	CA_FILE            certificates in PEM that the server's is checked against, instead of the system's
//	PLAIN_CREDENTIALS  "YES" lets signed requests, and images, go over http://
//	SPOOL_DIR          where objects lie until they are all written; "/var/tmp"
//
// and those of package proxy: PROXY and PROXY_PASSWORD_FILE.
//
// A source never mixes two versions of an object: each range is asked for with the ETag that it had when it was opened. An
// object being written lies in a file without a name in SPOOL_DIR, since S3 gives back no part of an upload; whole
// parts go out as soon as they are written. Nobody sees any of it before Commit, which completes a multipart upload under
// the condition that there is no such object. Of two hosts that write one name the first to commit has it, and the
// other gets fault.Exists. A server that does not know that condition (If-None-Match) leaves the moment between our
// looking and its completing, in which the later one wins, whole: nothing is ever mixed.
//
// Clones are copied by the server (UploadPartCopy), except for parts with changes.
//
// It is not repository.Writable: S3 replaces whole objects only, so each write of a machine would cost an object, and
// it has no lock by which one host could be kept from the image of another.
package s3

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
	"hayloft/disk/repository/proxy"
	"hayloft/disk/repository/secret"
)

const (
	maxRequests   = 32 // at a time, each on a connection of its own
	dialTimeout   = 10 * time.Second
	idleTimeout   = 30 * time.Second
	defaultRegion = "us-east-1"
	defaultSpool  = "/var/tmp"
	deadAfter     = 24 * time.Hour // of an upload that nobody completed
)

// Repository implements repository.Repository, Cloner and Sweeper on a bucket.
type Repository struct {
	label     string // as in errors
	core      *minio.Core
	transport *http.Transport
	secure    bool
	bucket    string
	prefix    string // of keys: "" or with a slash at its end
	spool     string
	patience  attempt.Patience
	dead      time.Duration
	slots     chan struct{} // of requests under way

	mu      sync.Mutex
	writing map[string]bool // names
}

var (
	_ repository.Repository = (*Repository)(nil)
	_ repository.Cloner     = (*Repository)(nil)
	_ repository.Sweeper    = (*Repository)(nil)
)

// New describes the repository. Only CA_FILE is looked at; the server is not contacted yet. Errors: fault.Invalid for the
// address and for options.
func New(r disk.Repository) (*Repository, error) {
	a, err := parseAddress(r.Path)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "datastore %d: %w", r.ID, err)
	}
	s := &Repository{label: fmt.Sprintf("datastore %d (%s)", r.ID, r.Path), secure: a.secure, bucket: a.bucket, prefix: a.prefix,
		spool: r.Options["SPOOL_DIR"], patience: attempt.Default(), dead: deadAfter, slots: make(chan struct{}, maxRequests), writing: map[string]bool{}}
	if s.spool == "" {
		s.spool = defaultSpool
	}
	if err := s.connect(a, r.Options); err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "%s: %w", s.label, err)
	}
	return s, nil
}

func (r *Repository) connect(a address, options map[string]string) error {
	keys, err := newKeys(options, a.secure)
	if err != nil {
		return err
	}
	roots, err := secret.Roots(options["CA_FILE"])
	if err != nil {
		return err
	}
	region := options["REGION"]
	if region == "" {
		region = defaultRegion
	}
	r.transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: maxRequests,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
	}
	if err := proxy.Set(r.transport, options); err != nil {
		return err
	}
	r.core, err = minio.NewCore(a.host, &minio.Options{Creds: credentials.New(keys), Secure: a.secure, Transport: r.transport, Region: region,
		BucketLookup: minio.BucketLookupPath, MaxRetries: 1})
	if err != nil {
		return fault.Errorf(fault.Invalid, "BASE_PATH: %w", err)
	}
	return nil
}

// address is a BASE_PATH.
type address struct {
	secure               bool
	host, bucket, prefix string
}

func parseAddress(text string) (address, error) {
	u, err := url.Parse(text)
	if err != nil {
		return address{}, fmt.Errorf("BASE_PATH is no URL: %w", bare(err))
	}
	if u.User != nil {
		return address{}, fmt.Errorf("BASE_PATH has a user in it: use ACCESS_KEY_ID and SECRET_KEY_FILE")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return address{}, fmt.Errorf("BASE_PATH %q is not https://HOST[:PORT]/BUCKET[/PREFIX]", text)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return address{}, fmt.Errorf("BASE_PATH %q has a query or fragment", text)
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if err := s3utils.CheckValidBucketName(bucket); err != nil {
		return address{}, fmt.Errorf("BASE_PATH %q: bucket %q: %w", text, bucket, err)
	}
	if prefix != "" {
		for element := range strings.SplitSeq(prefix, "/") {
			if repository.CheckName(element) != nil {
				return address{}, fmt.Errorf("BASE_PATH %q: prefix %q", text, prefix)
			}
		}
		prefix += "/"
	}
	return address{u.Scheme == "https", u.Host, bucket, prefix}, nil
}

// keys is who we are. The file is read for each request, so that what it holds can be changed.
type keys struct{ id, file string }

func newKeys(options map[string]string, secure bool) (*keys, error) {
	k := &keys{id: options["ACCESS_KEY_ID"], file: options["SECRET_KEY_FILE"]}
	plain, err := secret.Yes(options, "PLAIN_CREDENTIALS")
	switch {
	case err != nil:
		return nil, err
	case (k.id == "") != (k.file == ""):
		return nil, fault.Errorf(fault.Invalid, "ACCESS_KEY_ID and SECRET_KEY_FILE go together")
	case k.id != "" && !secure && !plain:
		return nil, fault.Errorf(fault.Invalid, "requests over http:// can be read by everybody on the way, and images too: use https://, or say PLAIN_CREDENTIALS = YES")
	case strings.ContainsAny(k.id, "/,= \r\n"):
		return nil, fault.Errorf(fault.Invalid, "ACCESS_KEY_ID %q", k.id)
	}
	return k, nil
}

// Retrieve implements credentials.Provider.
func (k *keys) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider.
func (k *keys) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	if k.id == "" {
		return credentials.Value{SignerType: credentials.SignatureAnonymous}, nil
	}
	key, err := secret.Read("SECRET_KEY_FILE", k.file)
	if err != nil {
		return credentials.Value{}, err
	}
	return credentials.Value{AccessKeyID: k.id, SecretAccessKey: key, SignerType: credentials.SignatureV4}, nil
}

// IsExpired implements credentials.Provider.
func (k *keys) IsExpired() bool { return true }

func (r *Repository) key(name string) string { return r.prefix + name }

// Capacity implements repository.Repository. S3 does not say, so all of it is zero.
func (r *Repository) Capacity(ctx context.Context) (disk.Capacity, error) {
	return disk.Capacity{}, ctx.Err()
}

// Close closes the connections that are idle now; without it they end by themselves, half a minute after their use.
func (r *Repository) Close() error {
	r.transport.CloseIdleConnections()
	return nil
}
