package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hayloft/disk/way"
)

func parseStorage(t *testing.T, args ...string) storageFlags {
	t.Helper()
	var f storageFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStorageFlags(t *testing.T) {
	for args, want := range map[string]string{
		"": "",
		"--ls-mad lvm --ls-path vg --ls-layout thin --cache-max 10": "",
		"--ls-mad dummy --lc-mad dummy":                             "",
		"--ls-mad zfs":                                              "none of file, lvm, dummy",
		"--ls-mad lvm":                                              "needs --ls-path",
		"--ls-mad lvm --ls-path vg --ls-layout x":                   "neither thick nor thin",
		"--ls-layout thin":                                          "is for --ls-mad lvm",
		"--ls-mad dummy --ls-max 3":                                 "keeps nothing",
		"--cache-path /x":                                           "for disks that are not files",
		"--lc-mad zcache":                                           `--lc-mad "zcache" is none of hayloft`,
		"--lc-mad dm-cache":                                         "",
		"--copies -1":                                               "--copies -1",
	} {
		f := parseStorage(t, strings.Fields(args)...)
		err := f.check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestStorageIsTold(t *testing.T) {
	dir := t.TempDir()
	var c way.Config
	f := parseStorage(t, "--ls-max", "100", "--copies", "7", "--copies-per-repository", "3")
	told, err := f.open(t.Context(), dir, "x", &c, slog.Default())
	if err != nil || told.LsMad != "file" || told.LsPath != filepath.Join(dir, "store") || told.LsMax != 100<<20 || told.LcMad != "hayloft" || len(told.LcModes) > 0 {
		t.Errorf("%+v %v", told, err)
	}
	if c.Root != told.LsPath || c.Max != 100<<20 || c.Volumes != nil || c.Kernel != nil || c.Copies != 7 || c.CopiesPerRepository != 3 {
		t.Errorf("%+v", c)
	}
	f = parseStorage(t, "--ls-mad", "dummy", "--lc-mad", "dummy", "--cache-path", dir+"/c")
	if told, err = f.open(t.Context(), dir, "x", &c, slog.Default()); err != nil || told.LsMad != "dummy" || len(told.LcModes) != 1 || told.LcModes[0] != "NONE" {
		t.Errorf("%+v %v", told, err)
	}
	if c.Root != dir+"/c" || c.Max != 0 || c.Volumes == nil || c.Kernel == nil || c.KernelName != "dummy" {
		t.Errorf("%+v", c)
	}
}

// TestUpHandsFlagsOn: what `hayloft up` was told of local stores, its agent is.
func TestUpHandsFlagsOn(t *testing.T) {
	var f upFlags
	cmd := &cobra.Command{}
	f.agent.register(cmd)
	given := "--ls-mad lvm --ls-path vg --ls-layout thick --ls-max 5 --cache-path /c --cache-max 6 --copies 8 --copies-per-repository 9"
	if err := cmd.ParseFlags(strings.Fields(given)); err != nil {
		t.Fatal(err)
	}
	got := " " + strings.Join(f.agentArgs(), " ") + " "
	words := strings.Fields(given)
	for i := 0; i < len(words); i += 2 {
		if !strings.Contains(got, " "+words[i]+" "+words[i+1]+" ") {
			t.Errorf("%s is not in %s", words[i], got)
		}
	}
}
