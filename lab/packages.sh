#!/bin/sh
# Installs the Debian packages that the demo ("packages.sh demo") or all the tests ("packages.sh test") need and
# that are missing. When none is missing it changes nothing and needs no network.
set -eu

demo="qemu-system-x86 qemu-utils lxc iproute2 nftables openssh-client ca-certificates
	e2fsprogs mtools squashfs-tools syslinux"
tests="gcc libc6-dev git procps busybox-static genisoimage xorriso protobuf-compiler qemu-block-extra util-linux
	nbdkit libnbd-bin fio fuse3 openssh-server tgt nfs-ganesha nfs-ganesha-vfs ceph-mon ceph-mgr ceph-osd ceph-common
	lvm2 thin-provisioning-tools xfsprogs btrfs-progs debootstrap open-iscsi radosgw rpcbind curl"

case ${1-} in
demo) wanted=$demo ;;
test) wanted="$demo $tests" ;;
*)
	echo "usage: packages.sh demo|test" >&2
	exit 2
	;;
esac
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	echo "packages.sh: this is no Debian; install the like of: $wanted" >&2
	exit 1
fi

missing=
for package in $wanted; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
# The golden images are made from packages that apt fetches, so it must know of some.
lists=$(find /var/lib/apt/lists -name '*_Packages*' -print -quit 2>/dev/null || true)
[ -n "$missing" ] || [ -z "$lists" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	exec sudo "$0" "$@"
fi

export DEBIAN_FRONTEND=noninteractive
echo "==> apt-get update"
apt-get -qq -o Acquire::Retries=3 update
[ -n "$missing" ] || exit 0
echo "==> apt-get install$missing"
# Nothing may begin to serve on this machine because of a demo: no service is started.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	trap 'rm -f $policy' EXIT
	trap 'exit 1' HUP INT TERM
fi
# shellcheck disable=SC2086 # one word a package
apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --yes --no-install-recommends $missing >/dev/null
