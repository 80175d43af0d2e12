package image

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// origin is the file an import reads.
type origin struct {
	*os.File
	name string // as the user gave it
	path string // for other programs to open
	size int64
}

// NextData implements Extents.
func (o *origin) NextData(offset int64) (start, end int64, err error) {
	return nextData(o.File, o.size, offset)
}

func nextData(f *os.File, size, offset int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && start >= size {
		return 0, 0, io.EOF
	}
	if errors.Is(err, unix.EINVAL) {
		return offset, size, nil
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	return start, min(end, size), err
}

// openOrigin opens a path or URL; scratch is a directory for what has to be fetched.
func openOrigin(ctx context.Context, o ImportOptions, scratch string) (*origin, error) {
	source := o.Source
	if u, err := url.Parse(source); err == nil && strings.Contains(source, "://") {
		switch u.Scheme {
		case "file":
			if u.Host != "" && u.Host != "localhost" {
				return nil, fault.Errorf(fault.Invalid, "%s: a file of another host", source)
			}
			source = u.Path
		case "http", "https":
			return fetchOrigin(ctx, o, scratch)
		default:
			return nil, fault.Errorf(fault.Unsupported, "%s: scheme %q; file, http and https are known", source, u.Scheme)
		}
	}
	return openFile(source, o.Source)
}

func openFile(path, name string) (*origin, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fault.Errorf(fault.Invalid, "%s: not a plain file", name)
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &origin{File: f, name: name, path: path, size: fi.Size()}, nil
}

// fetchOrigin downloads a URL into scratch. It is given up when it sends nothing for Limits.Stall.
func fetchOrigin(ctx context.Context, o ImportOptions, scratch string) (_ *origin, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(o.Limits.Stall, func() {
		cancel(fault.Errorf(fault.Unavailable, "%s: nothing came for %v", o.Source, o.Limits.Stall))
	})
	defer stall.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, o.Source, nil)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "%s: %w", o.Source, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fetchError(ctx, o.Source, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		class := fault.Unavailable
		if response.StatusCode == http.StatusNotFound {
			class = fault.NotFound
		}
		return nil, fault.Errorf(class, "%s: server says %s", o.Source, response.Status)
	}
	// Without a name from the start, so that even a crash leaves nothing; other programs find it under /proc.
	f, err := os.CreateTemp(scratch, ".fetch-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	var done int64
	body := readerFunc(func(p []byte) (int, error) {
		n, err := response.Body.Read(p)
		stall.Reset(o.Limits.Stall)
		if done += int64(n); done > o.Limits.Size {
			return n, fault.Errorf(fault.Invalid, "%s: more than the limit of %d bytes", o.Source, o.Limits.Size)
		}
		if n > 0 && o.Report != nil {
			o.Report(done, max(0, response.ContentLength))
		}
		return n, err
	})
	if _, err = io.Copy(f, body); err != nil {
		return nil, fetchError(ctx, o.Source, err)
	}
	return &origin{File: f, name: o.Source, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), size: done}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func fetchError(ctx context.Context, source string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if class := fault.ClassOf(err); class != fault.Internal {
		return err
	}
	return fault.Errorf(fault.Unavailable, "%s: %w", source, err)
}

// expectation is the digest that a source file should have.
type expectation struct {
	text, algorithm, hex string
	new                  func() hash.Hash
}

func parseExpected(text string) (*expectation, error) {
	if text == "" {
		return nil, nil
	}
	algorithm, digits, _ := strings.Cut(text, ":")
	e := &expectation{text: text, algorithm: algorithm, hex: strings.ToLower(digits)}
	switch algorithm {
	case "sha256":
		e.new = sha256.New
	case "sha1":
		e.new = sha1.New
	case "md5":
		e.new = md5.New
	case "blake3":
		e.new = func() hash.Hash { return blake3.New() }
	default:
		return nil, fault.Errorf(fault.Invalid, "digest %q: known are sha256:, sha1:, md5: and blake3:", text)
	}
	if raw, err := hex.DecodeString(e.hex); err != nil || len(raw) != e.new().Size() {
		return nil, fault.Errorf(fault.Invalid, "digest %q: not %d hexadecimal digits", text, 2*e.new().Size())
	}
	return e, nil
}

// sum hashes the whole file.
func (e *expectation) sum(ctx context.Context, o *origin) (string, error) {
	h := e.new()
	section := io.NewSectionReader(o.File, 0, o.size)
	_, err := io.CopyBuffer(h, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return section.Read(p)
	}), make([]byte, batchSize))
	return hex.EncodeToString(h.Sum(nil)), err
}
