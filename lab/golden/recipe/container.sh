
has_address() { ip -4 -o addr show dev "$1" 2>/dev/null | grep -q inet; }

# LXC ends the container when process 1 ends, and starts it again when that asks its kernel for a reboot.
down() {
	echo "tiny: $name going down ($1)"
	end_others
	[ "$1" = reboot ] && reboot -f
	exit 0
}

[ -e /proc/self ] || mount -t proc proc /proc
[ -d /sys/class/net ] || mount -t sysfs -o ro sys /sys
[ -c /dev/pts/ptmx ] || { mkdir -p /dev/pts && mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts; }
[ -c /dev/console ] && exec </dev/null >/dev/console 2>&1
read_context /context
set_name
set_login
set_network
start_ssh
listen
say_ready
run_start_script
serve
