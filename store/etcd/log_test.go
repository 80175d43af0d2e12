package etcd

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestLog(t *testing.T) {
	var lines bytes.Buffer
	to := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log := loggerBuilder{to: to}.zap().With(zap.String("member", "m1"))
	log.Info("not for anybody")
	log.Warn("slow", zap.Duration("took", 3*time.Second))
	log.Error("broken", zap.Error(errors.New("a cause")))
	log.Warn("simple token is not cryptographically signed")
	got := strings.Split(strings.TrimSpace(lines.String()), "\n")
	for i, want := range []string{`level=WARN msg="etcd: slow" member=m1 took=3s`, `level=ERROR msg="etcd: broken" member=m1 error="a cause"`} {
		if len(got) != 2 || !strings.HasSuffix(got[i], want) {
			t.Errorf("line %d of %q, want %q", i, got, want)
		}
	}
}

func TestFatalWhileStarting(t *testing.T) {
	starting := new(atomic.Bool)
	starting.Store(true)
	log := loggerBuilder{to: slog.New(slog.DiscardHandler), starting: starting}.zap()
	defer func() {
		if failure, ok := recover().(startFailure); !ok || failure.reason != "no log: a cause" {
			t.Errorf("recovered %+v", failure)
		}
	}()
	log.Fatal("no log", zap.Error(errors.New("a cause")))
}
