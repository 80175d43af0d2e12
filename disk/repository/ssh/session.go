package ssh

import (
	"context"
	_ "embed" // for the scripts
	"errors"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// A connection that is lost may still have writes under way: on the line, in the kernel of the storage server, in an
// sftp-server that hangs. They must not be carried out over what is written later by another connection. So the mark
// of a persistent image names the processes that write to it, and who opens it next ends these first.

//go:embed identify.sh
var identifyScript string

//go:embed end.sh
var endScript string

// identify gives the processes that carry out what we send over this connection.
func (r *Repository) identify(ctx context.Context, l *link) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limits.answer)
	defer cancel()
	out, err := l.conn.Run(ctx, command.Cmd{Name: "sh", Args: []string{"-c", identifyScript, "hayloft-identify"}})
	if err != nil {
		return "", err
	}
	session := strings.TrimSpace(string(out))
	if strings.Count(session, ":") < 2 {
		return "", fault.Errorf(fault.Unsupported, "the storage server's processes cannot be seen: %q", session)
	}
	return session, nil
}

// sameSession reports whether two identities are of one connection.
func sameSession(a, b string) bool {
	first := func(s string) string {
		f := strings.Fields(s)
		return strings.Join(f[:min(2, len(f))], " ")
	}
	return first(a) == first(b)
}

// endSession ends the processes of a former connection. fault.Busy when they do not end.
func (r *Repository) endSession(ctx context.Context, session string) error {
	ctx, cancel := context.WithTimeout(ctx, r.limits.answer)
	defer cancel()
	_, err := r.host.Run(ctx, command.Cmd{Name: "sh", Args: append([]string{"-c", endScript, "hayloft-end"}, strings.Fields(session)...)})
	var failed *command.Error
	if errors.As(err, &failed) {
		return fault.Errorf(fault.Busy, "what was written before may still be on its way: %w", err)
	}
	return err
}
