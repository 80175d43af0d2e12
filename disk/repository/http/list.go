package http

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	nethttp "net/http"
	"sort"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
)

const (
	indexFile = "index.json"
	maxIndex  = 64 << 20 // bytes
)

// Listing is the content of index.json, which a site may put beside its objects: the web has no other way to list.
type Listing struct {
	Objects []Object `json:"objects"`
}

// Object is one line of a Listing.
type Object struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified,omitzero"`
}

// List implements repository.Repository from index.json below BASE_PATH; fault.Unsupported when there is none,
// fault.Corrupt when it is not a Listing.
func (r *Repository) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	var listing Listing
	err := r.retry(ctx, func() (int, error) {
		listing = Listing{}
		return 0, r.readListing(ctx, &listing)
	})
	if fault.Is(err, fault.NotFound) {
		return nil, fault.Errorf(fault.Unsupported, "%s: cannot be listed: there is no %s", r.label, indexFile)
	}
	if err != nil {
		return nil, r.object(indexFile, err)
	}
	var list []repository.Info
	for i, o := range listing.Objects {
		if err := repository.CheckName(o.Name); err != nil || o.Size < 0 {
			return nil, r.object(indexFile, fault.Errorf(fault.Corrupt, "entry %d: name %q, size %d", i, o.Name, o.Size))
		}
		if strings.HasPrefix(o.Name, prefix) {
			list = append(list, repository.Info{Name: o.Name, Size: o.Size, Modified: o.Modified})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

func (r *Repository) readListing(ctx context.Context, to *Listing) error {
	p, err := r.do(ctx, nethttp.MethodGet, r.address(indexFile), nethttp.Header{})
	if err != nil {
		return err
	}
	defer p.close()
	if p.StatusCode != nethttp.StatusOK {
		return refused(p)
	}
	if err := checkEncoding(p); err != nil {
		return err
	}
	body := &io.LimitedReader{R: p, N: maxIndex}
	err = json.NewDecoder(body).Decode(to)
	var t *attempt.Transient
	switch {
	case err == nil || errors.As(err, &t):
		return err
	case body.N == 0:
		return fault.Errorf(fault.Corrupt, "more than %d bytes", maxIndex)
	case errors.Is(err, io.ErrUnexpectedEOF) && p.ContentLength >= 0 && maxIndex-body.N < p.ContentLength:
		return &attempt.Transient{Err: err}
	}
	return fault.Errorf(fault.Corrupt, "%w", err)
}
