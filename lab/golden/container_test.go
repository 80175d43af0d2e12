package golden

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/lab/labtest"
)

// containerScript runs in a mount and a network namespace of its own, which end with it. lxc-start works only
// where nothing but cgroup2 is mounted, and looks for the bridge in a sysfs of its network namespace.
const containerScript = `
set -e
umount -R /sys
mount -t sysfs sys /sys
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
ip link add br0 type bridge
ip addr add 10.9.9.1/24 dev br0
ip link set br0 up
lxc() { local program=$1; shift; "$program" -P "$DIR" -n "$NAME" "$@"; }
trap 'lxc lxc-stop -k >/dev/null 2>&1 || true; wait || true; rmdir /sys/fs/cgroup/lxc.*."$NAME" /sys/fs/cgroup/lxc.pivot 2>/dev/null || true' EXIT
touch "$DIR/console"
lxc lxc-start -F -f "$DIR/config" -o "$DIR/log" </dev/null &
started=$!
ready() {
	local n=0
	until [ "$(grep -c 'tiny: box-1 ready at 10.9.9.2' "$DIR/console")" -ge "$1" ]; do
		n=$((n + 1)); [ $n -lt 6000 ] || { echo "no ready line $1"; cat "$DIR/console" "$DIR/log"; exit 1; }
		kill -0 $started || { echo "lxc-start ended"; cat "$DIR/console" "$DIR/log"; exit 1; }
		sleep 0.02
	done
	exec 3<>/dev/tcp/10.9.9.2/22
	read -r -t 120 banner <&3
	exec 3<&- 3>&-
	echo "ready $1: $banner"
}
ready 1
lxc lxc-attach -- /bin/sh -c hostname
ls "$DIR/rootfs/root/.ssh"
until [ -s "$DIR/rootfs/root/started" ]; do sleep 0.02; done # the start script runs beside; ends with the test's limit
cat "$DIR/rootfs/root/started"
lxc lxc-stop --reboot
ready 2
lxc lxc-stop --nokill -t 120
wait $started
echo "stopped cleanly"
`

func TestContainerServesRebootsAndStops(t *testing.T) {
	labtest.Root(t, "lxc-start", "lxc-stop", "lxc-attach", "unshare", "ip", "bash", "tar")
	set, err := Build(t.Context(), Options{Log: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	_, authorized := newKey(t)
	dir := t.TempDir()
	for _, name := range []string{"rootfs", "context"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	do(t, "tar", "-xzf", set.Tar, "-C", filepath.Join(dir, "rootfs"))
	text := strings.NewReplacer("10.0.2.15", "10.9.9.2", "10.0.2.2", "10.9.9.1").Replace(contextFor("9", "box-1", authorized, "echo started >/root/started"))
	config := "lxc.rootfs.path = dir:" + dir + "/rootfs\nlxc.uts.name = box\nlxc.net.0.type = veth\nlxc.net.0.link = br0\n" +
		"lxc.net.0.flags = up\nlxc.net.0.hwaddr = 02:00:0a:00:02:0f\nlxc.mount.auto = proc:mixed sys:mixed\n" +
		"lxc.mount.entry = " + dir + "/context context none bind,ro 0 0\nlxc.pty.max = 16\nlxc.tty.max = 0\nlxc.console.logfile = " + dir + "/console\nlxc.apparmor.profile = unconfined\n"
	for name, content := range map[string]string{"context/context.sh": text, "config": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-mn", "--propagation", "private", "bash", "-c", containerScript)
	cmd.Env = append(os.Environ(), "DIR="+dir, "NAME=tiny-"+filepath.Base(filepath.Dir(dir)))
	cmd.WaitDelay = 20 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	t.Logf("%s", output.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ready 1: SSH-2.0-dropbear", "box-1", "authorized_keys", "started", "ready 2: SSH-2.0-dropbear", "stopped cleanly"} {
		if !strings.Contains(output.String(), want) {
			t.Errorf("no %q", want)
		}
	}
}
