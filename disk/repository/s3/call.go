package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/attempt"
)

// workLimit is for requests that a server answers after having moved bytes itself.
const workLimit = 10 * time.Minute

var errStalled = errors.New("the server said nothing")

// call does f until it succeeds or fails for good. f is given up when alive was not called for the limit; it says how
// many bytes it brought.
func (r *Repository) call(ctx context.Context, limit time.Duration, f func(ctx context.Context, alive func()) (int, error)) error {
	return attempt.Retry(ctx, r.patience, func() (int, error) {
		select {
		case r.slots <- struct{}{}:
			defer func() { <-r.slots }()
		case <-ctx.Done():
			return 0, attempt.Ended(ctx)
		}
		inner, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		timer := time.AfterFunc(limit, func() { cancel(errStalled) })
		defer timer.Stop()
		n, err := f(inner, func() { timer.Reset(limit) })
		if err != nil && context.Cause(inner) == errStalled {
			return n, &attempt.Transient{Err: fmt.Errorf("%w for %v", errStalled, limit)}
		}
		return n, explain(err)
	})
}

// ask is call for a request that brings no content.
func (r *Repository) ask(ctx context.Context, f func(ctx context.Context) error) error {
	return r.call(ctx, r.patience.Stall, func(ctx context.Context, _ func()) (int, error) { return 0, f(ctx) })
}

// work is call for a request whose answer may take the server long.
func (r *Repository) work(ctx context.Context, f func(ctx context.Context) error) error {
	return r.call(ctx, max(workLimit, r.patience.Stall), func(ctx context.Context, _ func()) (int, error) { return 0, f(ctx) })
}

// explain classifies an error, and tells what another attempt cannot help from what may be over soon.
func explain(err error) error {
	var (
		answer      minio.ErrorResponse
		transient   *attempt.Transient
		certificate *tls.CertificateVerificationError
	)
	switch {
	case err == nil || errors.As(err, &transient):
		return err
	case errors.As(err, &answer):
		return refused(answer)
	case errors.As(err, &certificate):
		return fault.Errorf(fault.Permission, "the server is not who it should be: %w", certificate)
	case fault.ClassOf(err) != fault.Internal:
		return err
	case errors.Is(err, io.EOF): // net/http's word for a connection that ended
		return &attempt.Transient{Err: io.ErrUnexpectedEOF}
	}
	return &attempt.Transient{Err: bare(err)}
}

func refused(answer minio.ErrorResponse) error {
	err := fmt.Errorf("the server answered %s: %s", answer.Code, answer.Message)
	switch answer.Code {
	case "NoSuchBucket":
		return fault.As(fault.Unavailable, err)
	case "XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "EntityTooLarge", "XMinioAdminBucketQuotaExceeded":
		return fault.As(fault.OutOfSpace, err)
	case "ConditionalRequestConflict", "OperationAborted", "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable":
		return &attempt.Transient{Err: err}
	}
	switch answer.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return fault.As(fault.NotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return fault.As(fault.Permission, err)
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return &conditionError{err}
	case http.StatusInsufficientStorage:
		return fault.As(fault.OutOfSpace, err)
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &attempt.Transient{Err: err}
	}
	return fault.As(fault.Unsupported, err)
}

// conditionError is a condition of a request that does not hold; what that means is the caller's to say.
type conditionError struct{ err error }

func (e *conditionError) Error() string { return e.err.Error() }

func conditionFailed(err error) bool {
	var c *conditionError
	return errors.As(err, &c)
}

// object puts repository and object into err, keeping its class.
func (r *Repository) object(name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "%s: object %s: %w", r.label, name, err)
}

// bare takes method and URL away, which the label says better.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
