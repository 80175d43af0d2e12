package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path"

	"github.com/minio/minio-go/v7"

	"hayloft/cloud/fault"
)

// put makes a small object by one request.
func (u *upload) put(ctx context.Context, whole span) error {
	if err := u.fill(ctx, whole); err != nil {
		return err
	}
	l, err := u.scan(whole)
	if err != nil {
		return err
	}
	o := u.options()
	o.SetMatchETagExcept("*")
	err = u.r.call(ctx, u.r.patience.Stall, func(ctx context.Context, alive func()) (int, error) {
		_, err := u.r.core.PutObject(ctx, u.r.bucket, u.key, &living{u.section(whole)(), alive}, whole.end-whole.start, "", l.sha, o)
		return 0, err
	})
	return u.settled(ctx, err)
}

// complete makes the object of its parts.
func (u *upload) complete(ctx context.Context, count int) error {
	parts := make([]minio.CompletePart, count)
	for i := range parts {
		parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: u.parts[i].etag}
	}
	o := u.options()
	o.UserMetadata = nil // was said when it began
	o.SetMatchETagExcept("*")
	err := u.r.work(ctx, func(ctx context.Context) error {
		_, err := u.r.core.CompleteMultipartUpload(ctx, u.r.bucket, u.key, u.id, parts, o)
		return err
	})
	if err = u.settled(ctx, err); err == nil {
		u.id = ""
	}
	return err
}

// settled is what an attempt to make the object came to: when an answer was lost, a second attempt finds the object there
// or the upload gone, and the object says whose it is.
func (u *upload) settled(ctx context.Context, err error) error {
	if !conditionFailed(err) && !fault.Is(err, fault.NotFound) {
		return err
	}
	info, lookErr := u.r.look(ctx, u.key)
	switch {
	case lookErr != nil && !fault.Is(lookErr, fault.NotFound):
		return lookErr
	case lookErr == nil && info.UserMetadata[writerID] == u.w.id:
		return nil
	case lookErr == nil:
		return fault.Errorf(fault.Exists, "exists: another host was faster")
	case conditionFailed(err):
		return fault.Errorf(fault.Busy, "existed while it was to be made: %w", err)
	}
	return fault.Errorf(fault.Unavailable, "its upload is gone: %w", err)
}

// drop leaves nothing of the object on the server.
func (u *upload) drop(ctx context.Context) error {
	if u.id != "" {
		err := u.r.ask(ctx, func(ctx context.Context) error {
			return u.r.core.AbortMultipartUpload(ctx, u.r.bucket, u.key, u.id)
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		u.id = ""
	}
	return u.dropZeros(ctx)
}

// manyZeros is from how many parts of zeros on the server is given an object of zeros to copy them from, instead of
// all of them.
const manyZeros = 3

// zerosKey is beside the object, and no name of one.
func (u *upload) zerosKey() string {
	dir, file := path.Split(u.w.name)
	return u.r.key(dir + zerosName(file, u.w.id))
}

const zerosMark = ".zeros-"

func zerosName(file, id string) string { return "." + file + zerosMark + id }

func (u *upload) makeZeros(ctx context.Context, parts []span) error {
	var count int
	var largest int64
	for _, whole := range parts {
		if u.empty(whole) {
			count++
			largest = max(largest, whole.end-whole.start)
		}
	}
	if count < manyZeros || u.zeros >= largest {
		return nil
	}
	largest = max(largest, leastCut+1) // no range of smaller ones can be copied
	sum := sha256.New()
	if _, err := io.CopyN(sum, zeroReader{}, largest); err != nil {
		return err
	}
	var info minio.UploadInfo
	err := u.r.call(ctx, u.r.patience.Stall, func(ctx context.Context, alive func()) (int, error) {
		var err error
		info, err = u.r.core.PutObject(ctx, u.r.bucket, u.zerosKey(), &living{io.LimitReader(zeroReader{}, largest), alive}, largest, "",
			hex.EncodeToString(sum.Sum(nil)), minio.PutObjectOptions{DisableContentSha256: true})
		return 0, err
	})
	u.zeros, u.etag = largest, info.ETag // also when nobody knows whether it is there: it is deleted then
	return err
}

func (u *upload) dropZeros(ctx context.Context) error {
	if u.zeros == 0 {
		return nil
	}
	if err := u.r.remove(ctx, u.zerosKey()); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	u.zeros = 0
	return nil
}

type zeroReader struct{}

var _ io.Reader = zeroReader{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
