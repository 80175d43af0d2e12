package ganeshalab

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/internal/command"
)

// TestQEMU: QEMU reads what is in the directory, and not when the server is away.
func TestQEMU(t *testing.T) {
	Run(t, func(t *testing.T, s *Server) {
		content := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{1}).Read(content)
		if err := os.WriteFile(filepath.Join(s.Dir, "a.img"), content, 0o644); err != nil {
			t.Fatal(err)
		}
		fetch := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			to := filepath.Join(t.TempDir(), "copy")
			if _, err := (command.Exec{}).Run(ctx, command.Cmd{Name: "qemu-img", Args: []string{"convert", "-f", "raw", "-O", "raw", s.URL + "/a.img", to}}); err != nil {
				return err
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes differ, %v", len(got), err)
			}
			return nil
		}
		if err := fetch(); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		if err := fetch(); err == nil || !strings.Contains(err.Error(), "qemu-img") {
			t.Errorf("without a server: %v", err)
		}
		s.Resume()
		if err := fetch(); err != nil {
			t.Error(err)
		}
	})
}
