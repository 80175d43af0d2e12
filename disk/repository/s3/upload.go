package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"hayloft/cloud/fault"
)

// upload brings a writer's object to the server: as one request when it is small, in parts otherwise.
type upload struct {
	w   *writer
	r   *Repository
	key string

	starting sync.Mutex // held while the upload is begun

	mu    sync.Mutex
	id    string        // of the multipart upload, "" before there is one
	parts map[int]*sent // what the server has
	zeros int64         // size of the object of zeros, 0 before there is one
	etag  string        // of that

	// the writer's when it commits
	size    int64
	written spans
	changes map[int]int
}

// sent is a part that the server has.
type sent struct {
	etag    string
	version int // of the writer's changes
	length  int64
}

func newUpload(w *writer) *upload {
	return &upload{w: w, r: w.repository, key: w.repository.key(w.name), parts: map[int]*sent{}}
}

// has reports whether the server has that version of a part.
func (u *upload) has(part, version int, whole span) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.parts[part]
	return s != nil && s.version == version && s.length == whole.end-whole.start
}

func (u *upload) keep(part int, s sent) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[part] = &s
}

// begun is the id of the multipart upload, which there is from now on. Also a caller who leaves waits for the answer, as long
// as the server may be silent: nobody could abort an upload without its id.
func (u *upload) begun(ctx context.Context) (string, error) {
	u.starting.Lock()
	defer u.starting.Unlock()
	if id := u.current(); id != "" {
		return id, nil
	}
	var id string
	err := u.r.ask(ctx, func(ctx context.Context) (err error) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), u.r.patience.Stall, errStalled)
		defer cancel()
		id, err = u.r.core.NewMultipartUpload(ctx, u.r.bucket, u.key, u.options())
		return err
	})
	if err != nil {
		return "", err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.id = id
	return id, nil
}

func (u *upload) current() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.id
}

func (u *upload) options() minio.PutObjectOptions {
	return minio.PutObjectOptions{ContentType: "application/octet-stream", UserMetadata: map[string]string{writerID: u.w.id}, DisableContentSha256: true}
}

// early sends a part that is whole, unless it is of zeros: those are for the end.
func (u *upload) early(ctx context.Context, part int, whole span, version int) error {
	look, err := u.scan(whole)
	if err != nil || look.zeros {
		return err
	}
	return u.send(ctx, part, whole, version, look, u.section(whole))
}

// section makes readers of a range of the spool. They read zeros from what was never written.
func (u *upload) section(r span) func() io.Reader {
	return func() io.Reader { return io.NewSectionReader(padded{u.w.spool}, r.start, r.end-r.start) }
}

// padded reads zeros beyond the end.
type padded struct{ io.ReaderAt }

func (z padded) ReadAt(p []byte, offset int64) (int, error) {
	n, err := z.ReaderAt.ReadAt(p, offset)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// look is what there is to know of a range before it is sent.
type look struct {
	zeros bool
	sha   string // in hexadecimal; "" when it is not needed
}

// scan reads a range of the spool. Over https nobody can change what is sent, so no digest is signed.
func (u *upload) scan(r span) (look, error) {
	var sum hash.Hash
	if !u.r.secure {
		sum = sha256.New()
	}
	l := look{zeros: true}
	buf := make([]byte, min(mib, r.end-r.start))
	in := u.section(r)()
	for (l.zeros || sum != nil) && r.start < r.end {
		n := min(int64(len(buf)), r.end-r.start)
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return l, fmt.Errorf("SPOOL_DIR %s: %w", u.r.spool, err)
		}
		r.start += n
		l.zeros = l.zeros && allZero(buf[:n])
		if sum != nil {
			sum.Write(buf[:n])
		}
	}
	if sum != nil {
		l.sha = hex.EncodeToString(sum.Sum(nil))
	}
	return l, nil
}

func allZero(p []byte) bool {
	var zeros [4096]byte
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// send uploads one part; body gives a reader for each attempt.
func (u *upload) send(ctx context.Context, part int, whole span, version int, l look, body func() io.Reader) error {
	id, err := u.begun(ctx)
	if err != nil {
		return err
	}
	var done minio.ObjectPart
	err = u.r.call(ctx, u.r.patience.Stall, func(ctx context.Context, alive func()) (int, error) {
		var err error
		o := minio.PutObjectPartOptions{Sha256Hex: l.sha, DisableContentSha256: true}
		done, err = u.r.core.PutObjectPart(ctx, u.r.bucket, u.key, id, part+1, &living{body(), alive}, whole.end-whole.start, o)
		return 0, err
	})
	if err == nil {
		u.keep(part, sent{done.ETag, version, whole.end - whole.start})
	}
	return err
}

// copyPart has the server take a part from what it has: a range of the object key, or all of it.
func (u *upload) copyPart(ctx context.Context, part int, whole span, version int, from, etag string, offset int64, all bool) error {
	id, err := u.begun(ctx)
	if err != nil {
		return err
	}
	length := whole.end - whole.start
	asked := length
	if all {
		asked = -1
	}
	var done minio.CompletePart
	err = u.r.work(ctx, func(ctx context.Context) (err error) {
		done, err = u.r.core.CopyObjectPart(ctx, u.r.bucket, from, u.r.bucket, u.key, id, part+1, offset, asked,
			map[string]string{"x-amz-copy-source-if-match": etag})
		return err
	})
	if err == nil {
		u.keep(part, sent{done.ETag, version, length})
	}
	return err
}

// finish sends what the server has not yet and makes the object. No other method is called meanwhile.
func (u *upload) finish(ctx context.Context) error {
	if err := u.r.free(ctx, u.w.name); err != nil {
		return err
	}
	u.w.mu.Lock()
	u.size, u.written, u.changes = u.w.size, slices.Clone(u.w.written), maps.Clone(u.w.changes)
	u.w.mu.Unlock()
	parts := u.w.layout.parts(u.size)
	if len(parts) > maxParts {
		return fault.Errorf(fault.Unsupported, "%d bytes need more than %d parts", u.size, maxParts)
	}
	if len(parts) <= 1 && u.current() == "" && !u.fromParent(parts) {
		return u.put(ctx, span{0, u.size})
	}
	if err := u.makeZeros(ctx, parts); err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(2 * uploaders)
	for part, whole := range parts {
		group.Go(func() error { return u.bring(inner, part, whole) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := u.complete(ctx, len(parts)); err != nil {
		return err
	}
	return u.dropZeros(ctx)
}

// fromParent reports whether the one part is all of the parent, unchanged.
func (u *upload) fromParent(parts []span) bool {
	return len(parts) == 1 && u.inherited(parts[0])
}

// inherited reports whether a part is as the parent has it.
func (u *upload) inherited(whole span) bool {
	p := u.w.parent
	return p != nil && whole.end <= p.size && !u.written.touches(whole)
}

// bring has the server have a part.
func (u *upload) bring(ctx context.Context, part int, whole span) error {
	version := u.changes[part]
	p := u.w.parent
	switch {
	case u.has(part, version, whole):
		return nil
	case u.inherited(whole):
		err := u.copyPart(ctx, part, whole, version, u.r.key(p.name), p.etag, whole.start, whole == span{0, p.size})
		if conditionFailed(err) || fault.Is(err, fault.NotFound) {
			return fault.Errorf(fault.Busy, "its parent %s was replaced or deleted while it was cloned: %w", p.name, err)
		}
		return err
	}
	zeros := u.empty(whole)
	var l look
	if !zeros {
		if err := u.fill(ctx, whole); err != nil {
			return err
		}
		var err error
		if l, err = u.scan(whole); err != nil {
			return err
		}
		zeros = l.zeros
	}
	if zeros && u.zeros >= whole.end-whole.start {
		return u.copyPart(ctx, part, whole, version, u.zerosKey(), u.etag, 0, u.zeros == whole.end-whole.start)
	}
	if l.sha == "" && !u.r.secure {
		var err error
		if l, err = u.scan(whole); err != nil {
			return err
		}
	}
	return u.send(ctx, part, whole, version, l, u.section(whole))
}

// empty reports whether neither writer nor parent have anything of a part.
func (u *upload) empty(whole span) bool {
	p := u.w.parent
	return !u.written.touches(whole) && (p == nil || whole.start >= p.size)
}

// fill puts into the spool what a part has from the parent.
func (u *upload) fill(ctx context.Context, whole span) error {
	if u.w.parent == nil {
		return nil
	}
	for _, g := range u.written.gaps(whole) {
		g.end = min(g.end, u.w.parent.size)
		for g.start < g.end {
			p := make([]byte, min(mib, g.end-g.start))
			if err := u.w.inherit(ctx, p, g.start); err != nil {
				return err
			}
			if _, err := u.w.spool.WriteAt(p, g.start); err != nil {
				return fault.Errorf(fault.ClassOf(err), "SPOOL_DIR %s: %w", u.r.spool, err)
			}
			g.start += int64(len(p))
		}
	}
	return nil
}
