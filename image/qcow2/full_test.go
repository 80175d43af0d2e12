package qcow2

import (
	"encoding/json"
	"os/exec"
	"strconv"
	"testing"

	"hayloft/lab/labtest"
)

// TestFullSize: never less than QEMU says, and no more than a few clusters above it.
func TestFullSize(t *testing.T) {
	labtest.Root(t, "qemu-img")
	for _, size := range []int64{512, 1 << 16, 1<<20 + 512, 3 << 29, 10 << 30, 100 << 30, 1 << 40, 20 << 40} {
		out, err := exec.Command("qemu-img", "measure", "-O", "qcow2", "--size", strconv.FormatInt(size, 10), "--output=json").Output()
		if err != nil {
			t.Fatal(err)
		}
		var measured struct {
			Full int64 `json:"fully-allocated"`
		}
		if err := json.Unmarshal(out, &measured); err != nil {
			t.Fatal(err)
		}
		if got := FullSize(size); got < measured.Full || got > measured.Full+4*clusterSize {
			t.Errorf("%d bytes: %d, QEMU says %d", size, got, measured.Full)
		}
	}
}
