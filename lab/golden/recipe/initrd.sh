#!/bin/sh
# First program of the tiny virtual machine: finds the disk called "tiny" and goes on from there.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe -a $(cat /lib/modules/boot)
mount -t ext4 LABEL=tiny /root 2>/dev/null || {
	more=1
	modprobe -a $(cat /lib/modules/cdrom)
	n=0
	# Disks behind SCSI and ATA appear a while after their driver.
	until mount -t ext4 LABEL=tiny /root 2>/dev/null; do
		n=$((n + 1))
		if [ $n -gt 50 ]; then
			echo "tiny: no file system with the label tiny on any disk" >/dev/console
			sh </dev/console >/dev/console 2>&1
		fi
		sleep 0.2
	done
}
context() { mount -t iso9660 -o ro LABEL=CONTEXT /root/run/context 2>/dev/null; }
context || {
	[ -n "$more" ] || modprobe -a $(cat /lib/modules/cdrom)
	n=0
	# A CD-ROM answers a while after its driver is there; with no controller nothing will come.
	until context; do
		n=$((n + 1))
		[ $n -lt 6 ] && [ -e /sys/class/scsi_host/host0 ] || break
		sleep 0.2
	done
}
mount -o move /sys /root/sys
mount -o move /proc /root/proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
