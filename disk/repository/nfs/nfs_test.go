package nfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/internal/command"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"server:/export": "server:/export", "10.0.0.1:/a/b c/": "10.0.0.1:/a/b c", "[fe80::1%eth0]:/x": "[fe80::1%eth0]:/x", "nfs.example.org:/": "nfs.example.org:/",
		"": "", "/export": "", "server": "", "server:export": "", "-o:/x": "", "a,b:/x": "", "server:/a/../b": "", "server:/a//b": "", "server:/a\nb": "",
		"[10.0.0.1]:/x": "", "[::1:/x": "", "[::1%a,b]:/x": "", `server:/a\040b`: "", "a b:/x": "",
	} {
		got, err := parseSource(text)
		if got != want || (want == "") != (err != nil) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for text, says := range map[string]string{
		"": "", "hard": "", " vers=4.1 , rsize=1048576,sec=krb5p,nconnect=4": "", "softerr,timeo=50,": "",
		"suid": `"suid"`, "dev": `"dev"`, "exec": `"exec"`, "vers=3": "vers=3", "soft": `"soft"`, "nolock": `"nolock"`, "local_lock=all": `"local_lock"`,
		"nocto": `"nocto"`, "lookupcache=all": "lookupcache=all", "timeo": "timeo", "hard=1": "hard=1", "rsize=-1": "rsize=-1", "addr=1.2.3.4": `"addr"`,
		"context=system_u": `"context"`, "x-systemd.automount": `"x-systemd.automount"`, "port=2049;ls": "port",
	} {
		r, err := New(disk.Repository{ID: 7, Path: "server:/x", Options: map[string]string{"MOUNT_OPTIONS": text}})
		switch {
		case says != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "datastore 7 (server:/x): MOUNT_OPTIONS")):
			t.Errorf("%q: %v", text, err)
		case says == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case says == "":
			if got := strings.Join(r.mount.options, ","); !strings.HasSuffix(got, ",nosuid,nodev,noexec") || !strings.HasPrefix(got, "softerr,") {
				t.Errorf("%q: %s", text, got)
			}
		}
	}
	if _, err := New(disk.Repository{ID: 7, Path: "/x"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "datastore 7") {
		t.Error(err)
	}
}

func TestMountinfo(t *testing.T) {
	const text = "22 1 0:20 / / rw - ext4 /dev/vda rw\n" +
		"40 22 0:45 / /run/a rw,nosuid shared:1 - nfs4 server:/a\\040b rw,vers=4.2\n" +
		"41 22 0:46 / /run/b rw - tmpfs tmpfs rw\n" +
		"42 41 8:259 / /run/b rw - nfs4 server:/b rw\n" +
		"43 22 0:47 / /run/c rw - nfs4 server:/c rw\n44 43 0:48 / /run/c rw - tmpfs tmpfs rw\nnonsense\n"
	for _, row := range []struct {
		dir, source string
		device      uint64
		class       fault.Class
	}{
		{"/run/a", "server:/a b", unix.Mkdev(0, 45), 0},
		{"/run/a", "server:/a", 0, fault.WrongState},
		{"/run/b", "server:/b", unix.Mkdev(8, 259), 0},
		{"/run/c", "server:/c", 0, fault.WrongState},
		{"/run/d", "server:/d", 0, fault.NotFound},
		{"/", "server:/", 0, fault.WrongState},
	} {
		device, err := parseMountinfo(text, row.dir, row.source)
		if (row.class == 0) != (err == nil) || err != nil && !fault.Is(err, row.class) || err == nil && device != row.device {
			t.Errorf("%s: %d, %v", row.dir, device, err)
		}
	}
	var all []string
	for _, m := range mountsIn(text, "/run") {
		all = append(all, m.source+" on "+m.dir)
	}
	if got, want := strings.Join(all, ", "), "server:/a b on /run/a, server:/b on /run/b, server:/c on /run/c"; got != want {
		t.Errorf("mounts in /run: %s, want %s", got, want)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("40 22 0:45 / /run/a rw - nfs4 s:/a rw\n", "/run/a", "s:/a")
	f.Add("\\040 - ", "\\", " ")
	f.Fuzz(func(t *testing.T, text, dir, source string) {
		if _, err := parseMountinfo(text, dir, source); err == nil && (!strings.Contains(text, " nfs4 ") && !strings.Contains(text, "nfs4")) {
			t.Errorf("found %q in %q", dir, text)
		}
	})
}

// refusal is a mount.nfs4 that fails.
type refusal struct {
	stderr string
	calls  int
	wait   bool
}

func (r *refusal) Run(ctx context.Context, c command.Cmd) ([]byte, error) {
	r.calls++
	if r.wait {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, &command.Error{Cmd: c, Status: 32, Stderr: r.stderr}
}

// TestRefusedMounts: the error says what mount.nfs4 said, and no directory is left.
func TestRefusedMounts(t *testing.T) {
	for stderr, class := range map[string]fault.Class{
		"mount.nfs4: access denied by server while mounting server:/x":                             fault.Permission,
		"mount.nfs4: No such device":                                                               fault.Unsupported,
		"mount.nfs4: Connection refused":                                                           fault.Unavailable,
		"mount.nfs4: mounting server:/x failed, reason given by server: No such file or directory": fault.Unavailable,
	} {
		dir := t.TempDir()
		runner := &refusal{stderr: stderr}
		r, err := Config{Dir: dir, Runner: runner}.New(disk.Repository{ID: 7, Path: "server:/x"})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = r.Create(t.Context(), "a")
			if !fault.Is(err, class) || !strings.Contains(err.Error(), "datastore 7 (server:/x): mount: ") || !strings.Contains(err.Error(), stderr) {
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
		}
		if _, err := os.Stat(r.mount.dir); err == nil || runner.calls != 2 {
			t.Errorf("%d calls, %v", runner.calls, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHangingMount: whoever waits for a mount leaves when it likes to, also those who wait for the one who mounts.
func TestHangingMount(t *testing.T) {
	r, err := Config{Dir: filepath.Join(t.TempDir(), "new"), Runner: &refusal{wait: true}}.New(disk.Repository{ID: 7, Path: "server:/x"})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	began := time.Now()
	for range 3 {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := r.Stat(ctx, "a")
			errs <- err
		}()
	}
	for range 3 {
		if err := <-errs; !fault.Is(err, fault.Unavailable) {
			t.Error(err)
		}
	}
	if took := time.Since(began); took >= mountLimit {
		t.Errorf("after %v", took)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
