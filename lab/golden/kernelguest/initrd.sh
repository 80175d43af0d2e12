#!/bin/sh
# First program of the kernel guest: mounts its root, and the disk with the programs of the tests, and goes on with
# the init that is among them. The command line says programs=DEVICE.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe -a $(cat /lib/modules/boot)
for word in $(cat /proc/cmdline); do
	case $word in
	programs=*) programs=${word#programs=} ;;
	esac
done
mount -t ext4 -o noatime,noinit_itable /dev/vda /root &&
	mount -t ext4 -o ro "$programs" /root/programs || {
	echo "kernel guest: no root or no programs" >/dev/console
	poweroff -f
}
mount -o move /sys /root/sys
mount -o move /proc /root/proc
mount -o move /dev /root/dev
exec switch_root /root /programs/init
