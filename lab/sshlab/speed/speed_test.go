package speed

import (
	"os"
	"testing"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// TestCompare: all ways copy what they should; how fast is the benchmark's.
func TestCompare(t *testing.T) {
	labtest.Root(t, "sshd", "scp", "sftp")
	results, err := Compare(t.Context(), Config{Dir: t.TempDir(), Size: 9<<20 + 123})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 8 {
		t.Errorf("%d results", len(results))
	}
	for _, r := range results {
		if r.Rate() <= 0 || r.Bytes != 9<<20+123 {
			t.Errorf("%+v", r)
		}
	}
}

// BenchmarkCopy compares copies of 512 MiB, or of HAYLOFT_SPEED_DIR's file system: go test -bench Copy -benchtime 1x.
func BenchmarkCopy(b *testing.B) {
	labtest.Root(b, "sshd", "scp", "sftp", "go")
	dir := os.Getenv("HAYLOFT_SPEED_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	program := b.TempDir() + "/hayloft"
	if _, err := (command.Exec{}).Run(b.Context(), command.Cmd{Name: "go", Args: []string{"build", "-o", program, "hayloft/cmd/hayloft"}}); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	results, err := Compare(b.Context(), Config{Dir: dir, Size: 512 << 20, Rounds: b.N, Program: program})
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range results {
		b.Logf("%-5s %-24s %7.0f MiB/s", r.What, r.Way, r.Rate())
	}
}
