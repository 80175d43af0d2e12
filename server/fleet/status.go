package fleet

import (
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hayloft/cloud/fault"
)

var statusCodes = map[fault.Class]codes.Code{
	fault.Invalid:     codes.InvalidArgument,
	fault.NotFound:    codes.NotFound,
	fault.Exists:      codes.AlreadyExists,
	fault.WrongState:  codes.FailedPrecondition,
	fault.Busy:        codes.Aborted,
	fault.OutOfSpace:  codes.ResourceExhausted,
	fault.Permission:  codes.PermissionDenied,
	fault.Unsupported: codes.Unimplemented,
	fault.Unavailable: codes.Unavailable,
	fault.Corrupt:     codes.DataLoss,
}

// toStatus is the one place where an error becomes a gRPC status.
func toStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code, ok := statusCodes[fault.ClassOf(err)]
	if !ok {
		code = codes.Internal
	}
	return status.Error(code, err.Error())
}
