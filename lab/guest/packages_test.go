package guest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

const (
	innerDisks    = 4
	innerDiskSize = 1 << 30
	// reportTime is kept of the time that go test gives, to end the guest and say what was under way.
	reportTime = 20 * time.Second
)

// TestGuestPackages runs all tests for the kernel guest, of all packages, each as a test of its own here.
func TestGuestPackages(t *testing.T) {
	labtest.Root(t, "qemu-system-x86_64", "go")
	ctx, cancel := context.WithCancel(t.Context())
	if end, limited := t.Deadline(); limited {
		ctx, cancel = context.WithDeadline(t.Context(), end.Add(-reportTime))
	}
	defer cancel()
	all, err := discover("../..")
	if err != nil {
		t.Fatal(err)
	}
	chosen := choose(t, all)
	if len(chosen) == 0 {
		t.Fatal("no tests for the kernel guest")
	}
	r := &runner{config: Config{Dir: t.TempDir(), Programs: map[string]string{}, Disks: make([]Disk, innerDisks),
		Log: func(line string) { say(t, "%s", line) }}}
	for i := range r.config.Disks {
		r.config.Disks[i].Size = innerDiskSize
	}
	programs := t.TempDir()
	compiled := map[string]error{}
	for _, p := range chosen {
		began := time.Now()
		files, err := p.compile(ctx, programs)
		compiled[p.path] = err
		maps.Copy(r.config.Programs, files)
		say(t, "compiled %s in %.1f s", p.path, time.Since(began).Seconds())
	}
	defer r.end(t)
	for _, p := range chosen {
		t.Run(p.path, func(t *testing.T) {
			if err := compiled[p.path]; err != nil {
				t.Fatal(err)
			}
			for _, name := range p.tests {
				t.Run(name, func(t *testing.T) { r.run(ctx, t, p, name) })
			}
		})
	}
}

// say is for whoever watches a run, and the log.
func say(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf(format, args...)
}

// long are tests that cost half a minute of the guest's processor and more, and whose ground is covered by a quicker neighbour:
// the other layout, the other part of a suite. make guest runs them, make test does not.
var long = regexp.MustCompile(`^disk/localstore/lvm\.TestGuestLVM(ThickSpace|ThickCopies|ThinLife|ThickKilled|ThinKilled)$|` +
	`^disk/kernelcache/(dmcache|bcache)\.TestGuest\w+(Host|Faults)$|` +
	`^disk/way\.TestGuest(DisksOnThickLVM|DMCacheOnLVM)$|` +
	`^disk/repository/nfs\.TestGuestNFS(Clones|Mounts)$|^disk/repository/path\.TestGuestHostDies$|` +
	`^disk/repository/iscsi\.TestGuest\w*Thick\w*$|` +
	`^lab/guest/proof\.TestGuest(Bcache|DMCache|ISCSI|LVM|NFS|Reflink)$|^lab/guest/product\.TestGuest(ThickVolumes|OfflineCopies)$`)

// choose keeps what HAYLOFT_GUEST_PACKAGES and HAYLOFT_GUEST_RUN match, long ones too; without them all that are not long, and all
// with HAYLOFT_GUEST_FULL=1.
func choose(t *testing.T, all []inner) []inner {
	everything := os.Getenv("HAYLOFT_GUEST_FULL") == "1" || os.Getenv("HAYLOFT_GUEST_PACKAGES")+os.Getenv("HAYLOFT_GUEST_RUN") != ""
	var left []string
	defer func() {
		if len(left) > 0 {
			say(t, "%d long ones are left to make guest: %s", len(left), strings.Join(left, ", "))
		}
	}()
	packages, err := regexp.Compile(os.Getenv("HAYLOFT_GUEST_PACKAGES"))
	if err != nil {
		t.Fatal(err)
	}
	names, err := regexp.Compile(os.Getenv("HAYLOFT_GUEST_RUN"))
	if err != nil {
		t.Fatal(err)
	}
	var chosen []inner
	for _, p := range all {
		if !packages.MatchString("hayloft/" + p.path) {
			continue
		}
		var tests []string
		for _, name := range p.tests {
			switch {
			case !names.MatchString(name):
			case !everything && long.MatchString(p.path+"."+name):
				left = append(left, p.path+"."+name)
			default:
				tests = append(tests, name)
			}
		}
		if p.tests = tests; len(tests) > 0 {
			chosen = append(chosen, p)
		}
	}
	return chosen
}

// runner has a guest that goes from test to test, until one leaves it unfit for the next.
type runner struct {
	config Config
	guest  *Guest // nil: to be started
	clean  string // what leftovers says of a fresh guest
	cpu    float64
}

func (r *runner) end(t *testing.T) {
	if r.guest == nil {
		return
	}
	r.cpu += r.guest.CPUSeconds()
	if _, err := r.guest.PowerCut(); err != nil {
		t.Error(err)
	}
	for _, d := range r.guest.config.Disks {
		os.Remove(d.File) // the next guest gets empty ones
	}
	r.guest = nil
}

func (r *runner) begin(ctx context.Context, t *testing.T) {
	if r.guest != nil {
		return
	}
	g, err := Start(ctx, r.config)
	if err != nil {
		t.Fatal(err)
	}
	r.guest = g
	r.clean = r.leftovers(ctx, t)
}

// run runs one test in the guest, which must pass, not be skipped, and leave nothing behind.
func (r *runner) run(ctx context.Context, t *testing.T, p inner, name string) {
	r.begin(ctx, t)
	before := r.guest.CPUSeconds()
	output, err := r.guest.Test(ctx, p.program(), name)
	t.Logf("%.1f s of CPU; in the guest:\n%s", r.guest.CPUSeconds()-before, output)
	if err != nil {
		t.Error(err)
	} else if left := r.leftAtLast(ctx, t); left != r.clean {
		t.Errorf("%s left devices or mounts behind: %s", name, without(left, r.clean))
	}
	if t.Failed() {
		t.Logf("console: %s", r.guest.Console())
		r.end(t)
	}
}

// leavingLimit is how long what goes by itself is waited for: a device that udev has open goes when that has closed it.
const leavingLimit = 2 * time.Minute

func (r *runner) leftAtLast(ctx context.Context, t *testing.T) string {
	for end := time.Now().Add(leavingLimit); ; time.Sleep(200 * time.Millisecond) {
		if left := r.leftovers(ctx, t); left == r.clean || t.Failed() || time.Now().After(end) {
			return left
		}
	}
}

// leftovers lists the devices and mounts of the guest that tests make; what kernel modules make stays.
func (r *runner) leftovers(ctx context.Context, t *testing.T) string {
	const list = `udevadm settle
for d in /sys/block/dm-* /sys/block/bcache* /sys/block/rbd* /sys/block/sd* /sys/block/loop*/loop /sys/block/nbd*/pid; do [ ! -e $d ] || echo $d; done
while read -r what where kind rest; do case $kind in nfsd|rpc_pipefs|configfs|debugfs|tracefs) ;; *) echo "$what at $where" ;; esac; done </proc/mounts`
	out, err := r.guest.Run(ctx, command.Cmd{Name: "/bin/sh", Args: []string{"-c", list}})
	if err != nil {
		t.Error(fmt.Errorf("what the test left behind: %w", err))
	}
	return string(out)
}

// without keeps the lines that the other text has not got.
func without(text, other string) string {
	var more []string
	for line := range strings.Lines(text) {
		if !strings.Contains("\n"+other, "\n"+line) {
			more = append(more, strings.TrimSpace(line))
		}
	}
	return strings.Join(more, ", ")
}
