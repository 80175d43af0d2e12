package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hayloft/cloud/fault"
)

// classify gives an error of the etcd client its class. ctx is the caller's: its own end is told from
// that of the store.
func (s *Store) classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", s.name, ctx.Err())
	}
	if s.ctx.Err() != nil {
		return s.closedError()
	}
	return fault.Errorf(classOf(err), "%s: %w", s.name, err)
}

func classOf(err error) fault.Class {
	switch {
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps),
		errors.Is(err, rpctypes.ErrDuplicateKey), errors.Is(err, rpctypes.ErrEmptyKey),
		errors.Is(err, rpctypes.ErrFutureRev), errors.Is(err, rpctypes.ErrCompacted):
		return fault.Invalid
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.OutOfSpace
	case errors.Is(err, rpctypes.ErrCorrupt):
		return fault.Corrupt
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrUserNotFound):
		return fault.Permission
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fault.Unavailable
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		return fault.Unavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		return fault.Permission
	case codes.InvalidArgument:
		return fault.Invalid
	case codes.ResourceExhausted:
		return fault.OutOfSpace
	}
	return fault.Internal
}

func codeOf(err error) codes.Code {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code()
	}
	return status.Code(err)
}
