package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hayloft/lab/labtest"
)

// TestMain is the server when the benchmark starts itself.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-serve") {
		main()
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// TestSmoke measures two lines for moments, with all peers, and the memory of a few exports.
func TestSmoke(t *testing.T) {
	labtest.Root(t, "fio", "nbdkit", "qemu-nbd")
	dir := t.TempDir()
	o := options{size: 8, rounds: 1, time: 50 * time.Millisecond, lines: "read-1m-8,randwrite-4k-32", device: "file", file: filepath.Join(dir, "disk")}
	if err := makeFile(o.file, o.size<<20); err != nil {
		t.Fatal(err)
	}
	result, err := measure(t.Context(), o, dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Lines) != 2 {
		t.Fatalf("%+v", result)
	}
	for _, r := range result.Lines {
		if len(r.Subjects) != 5 || r.Ratio <= 0 || r.BestPeer == "" || r.PerRequest.Mallocs <= 0 { // connecting allocates
			t.Errorf("%+v", r)
		}
		for _, f := range r.Subjects {
			if f.IOPS <= 0 || f.Bytes < f.IOPS*4096*0.9 {
				t.Errorf("%s: %+v", r.Line, f)
			}
		}
	}
	o.exports, o.lines = 3, "randread-4k-1"
	m, err := measureMemory(t.Context(), o, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if m.Idle < 1<<20 || len(m.Runs) != 1 || m.Runs[0].Peak < m.Idle {
		t.Errorf("%+v", m)
	}
}

// TestSmokeOfCaches measures each device for a moment, and the modes over a slow source.
func TestSmokeOfCaches(t *testing.T) {
	labtest.Root(t, "fio", "nbdkit", "qemu-nbd")
	o := options{size: 8, rounds: 1, time: 50 * time.Millisecond, lines: "randread-4k-32", latency: time.Millisecond}
	for name := range devices() {
		dir := t.TempDir()
		o.device, o.file = name, filepath.Join(dir, "disk")
		if err := makeFile(o.file, o.size<<20); err != nil {
			t.Fatal(err)
		}
		if result, err := measure(t.Context(), o, dir); err != nil || len(result.Lines) != 1 || result.Lines[0].Ratio <= 0 {
			t.Errorf("%s: %+v %v", name, result, err)
		}
	}
	m, err := measureModes(t.Context(), o, t.TempDir())
	if err != nil || len(m.Results) != 6 {
		t.Fatalf("%+v %v", m, err)
	}
	for _, r := range m.Results {
		if r.Median <= 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestOptions(t *testing.T) {
	good := options{size: 1, rounds: 1, time: time.Second, device: "file"}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*options){
		"-size":    func(o *options) { o.size = 0 },
		"-rounds":  func(o *options) { o.rounds = 0 },
		"-time":    func(o *options) { o.time = 0 },
		"-device":  func(o *options) { o.device = "tape" },
		"-lines":   func(o *options) { o.lines = "read-1m-8,nothing" },
		"-exports": func(o *options) { o.exports = -1 },
	} {
		bad := good
		spoil(&bad)
		if err := bad.check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParse(t *testing.T) {
	got, err := parse([]byte("note: something\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":10.5,\"bw_bytes\":4096,\"total_ios\":21},\"write\":{\"total_ios\":1}}]}"))
	if err != nil || got != (sample{requests: 22, iops: 10.5, bytes: 4096}) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"", "{", `{"jobs":[]}`, `{"jobs":[{"error":5,"read":{"total_ios":1}}]}`} {
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestRatio(t *testing.T) {
	r := row{Subjects: []figure{{Name: "hayloft", IOPS: 30}, {Name: "nbdkit", IOPS: 20}, {Name: "qemu-nbd", IOPS: 25}, {Name: "file, psync", IOPS: 1000}}}
	r.compare()
	if r.BestPeer != "qemu-nbd" || r.Ratio != 1.2 || median([]float64{3, 1, 2}) != 2 || median([]float64{1, 2}) != 1.5 || median(nil) != 0 {
		t.Errorf("%+v", r)
	}
}
