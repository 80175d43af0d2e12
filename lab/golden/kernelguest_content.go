package golden

// kernelGuestPackages are installed with all that they depend on.
var kernelGuestPackages = []string{kernelMeta, "busybox-static", "libc-bin", "base-files", "hostname", "tar", "gzip", "coreutils", "bash", "dash", "sed", "grep", "gawk", "findutils", "diffutils", "mount", "util-linux",
	"procps", "psmisc", "kmod", "udev", "dmsetup", "lvm2", "thin-provisioning-tools", "bcache-tools", "nfs-kernel-server", "nfs-common",
	"tgt", "open-iscsi", "e2fsprogs", "xfsprogs", "btrfs-progs", "qemu-utils", "qemu-block-extra", "qemu-system-x86", "ceph-common",
	"openssh-client", "openssh-server", "iproute2", "netbase"}

// kernelGuestLeftOut are beginnings of package names that others depend on: for scripts that do not run here, for QEMU's modules of
// screens and sound, for cards that boot from the network.
var kernelGuestLeftOut = []string{"python3", "libpython3", "perl", "libperl5", "libgluster", "libgf", "libicu", "initramfs-tools",
	"linux-image-cloud", "linux-base", "ca-certificates", "openssl_", "dpkg_", "usrmerge", "debconf", "ucf_", "gcc-12-base",
	"init-system-helpers", "klibc", "libklibc", "cpio_", "iso-codes", "libspice", "libgstreamer", "libasound2", "libbrlapi", "libcacard",
	"libwayland", "libgbm", "libepoxy", "libsndio", "libopus", "liborc", "libdrm", "libpcsclite", "libusb", "ipxe-qemu"}

// kernelGuestModules are loaded before the root is mounted; all others by whoever needs them.
var kernelGuestModules = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console"}

// kernelGuestLinks are made before packages are unpacked: the merged /usr of a Debian, and what dpkg's
// alternatives would choose.
var kernelGuestLinks = map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
	"usr/bin/awk": "gawk", "etc/mtab": "../proc/self/mounts", "var/run": "/run", "var/lock": "/run/lock"}

var kernelGuestDirs = []string{"programs", "work", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "tmp", "root",
	"mnt", "var/lib/nfs/sm", "var/lib/nfs/sm.bak", "var/lib/nfs/rpc_pipefs", "var/lib/nfs/v4recovery", "var/lib/nfs/nfsdcltrack",
	"var/lib/ceph", "etc/ceph", "etc/iscsi", "etc/lvm", "etc/tgt/conf.d", "var/lib/iscsi"}

// kernelGuestFiles are what the packages' scripts would have written, and settings for a slow machine without systemd.
var kernelGuestFiles = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nstatd:x:100:65534::/var/lib/nfs:/usr/sbin/nologin\n_rpc:x:101:65534::/run/rpcbind:/usr/sbin/nologin\n" +
		"sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\nceph:x:64045:64045:Ceph:/var/lib/ceph:/usr/sbin/nologin\nuser:x:1000:1000::/tmp:/bin/sh\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nkmem:x:15:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\naudio:x:29:\nvideo:x:44:\n" +
		"input:x:104:\nsgx:x:105:\nkvm:x:106:\nrender:x:107:\nlp:x:7:\nceph:x:64045:\nuser:x:1000:\nnogroup:x:65534:\n",
	"etc/shadow":                    "root:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n",
	"etc/nsswitch.conf":             "passwd: files\ngroup: files\nshadow: files\nhosts: files\nprotocols: files\nservices: files\nnetgroup: files\n",
	"etc/hostname":                  "guest\n",
	"etc/hosts":                     "127.0.0.1 localhost guest\n::1 localhost\n",
	"etc/resolv.conf":               "",
	"etc/fstab":                     "",
	"etc/exports":                   "",
	"etc/machine-id":                "6861796c6f6674206b65726e656c2067\n",
	"etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.2026-01.hayloft:guest\n",
	// Nothing here has systemd, which lvm2 would ask to start its daemons; nobody restores old metadata.
	"etc/lvm/lvmlocal.conf": "global {\n\tuse_lvmpolld = 0\n\tnotify_dbus = 0\n}\nactivation {\n\tmonitoring = 0\n}\nbackup {\n\tbackup = 0\n\tarchive = 0\n}\n",
	// Debian's has systemd activate a group whose last disk appears; each change of a disk would cost a pvscan.
	"etc/udev/rules.d/69-lvm.rules": "",
	"var/lib/nfs/etab":              "",
	"var/lib/nfs/rmtab":             "",
	"var/lib/nfs/state":             "",
}
