package qemublock

import "log/slog"

// Secret is a password or key. It shows in no log and no error.
type Secret string

func (Secret) String() string       { return "(secret)" }
func (Secret) GoString() string     { return "(secret)" }
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }
