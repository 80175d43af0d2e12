package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// loggerBuilder makes etcd's logger: its warnings and errors become lines of the given one.
type loggerBuilder struct {
	to *slog.Logger
	// starting turns what etcd calls fatal, and would end the process for, into a panic that Embedded
	// returns as an error.
	starting *atomic.Bool
}

func (b loggerBuilder) zap() *zap.Logger {
	if b.starting == nil {
		return zap.New(core{to: b.to})
	}
	return zap.New(core{to: b.to}, zap.WithFatalHook(fatalHook{b.starting}))
}

// noise are warnings about what this package chose on purpose.
var noise = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// freshData is the error of etcd's complaints when it looks for the version of a database that it has just
// made; it looks again seconds later.
const freshData = "missing term information"

type core struct {
	to     *slog.Logger
	fields []zapcore.Field
}

func (c core) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.to, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !noise[e.Message] {
		return checked.AddCore(e, c)
	}
	return checked
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	encoded := zapcore.NewMapObjectEncoder()
	attrs := make([]slog.Attr, 0, len(c.fields)+len(fields))
	for _, all := range [][]zapcore.Field{c.fields, fields} {
		for _, f := range all {
			f.AddTo(encoded)
			attrs = append(attrs, slog.Any(f.Key, encoded.Fields[f.Key]))
		}
	}
	if encoded.Fields["error"] == freshData || strings.HasSuffix(fmt.Sprint(encoded.Fields["error"]), ": "+freshData) {
		return nil
	}
	c.to.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs...)
	return nil
}

func (c core) Sync() error { return nil }

// startFailure is the panic of a fatal error while etcd starts.
type startFailure struct{ reason string }

type fatalHook struct{ starting *atomic.Bool }

func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	if !h.starting.Load() {
		// etcd calls it fatal when its log can no longer be made durable: nothing may go on.
		zapcore.WriteThenFatal.OnWrite(e, fields)
		return
	}
	reason := e.Message
	encoded := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoded)
	}
	if cause, ok := encoded.Fields["error"].(string); ok {
		reason += ": " + cause
	}
	panic(startFailure{reason})
}
