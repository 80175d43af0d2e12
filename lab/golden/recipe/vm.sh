
has_address() { return 1; }

down() {
	echo "tiny: $name going down ($1)"
	end_others
	umount /run/context 2>/dev/null
	mount -o remount,ro /
	"$1" -f
}

# console: a root shell on the serial line for whoever presses Enter.
console() {
	while :; do
		read -r line || sleep 1
		setsid cttyhack sh -l
	done
}

mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
echo 0 >/proc/sys/kernel/ctrl-alt-del
exec </dev/null >/dev/console 2>&1
read_context /run/context
set_name
set_login
set_network
start_ssh
say_ready
acpid -f -l /dev/null &
[ -c /dev/ttyS0 ] && console </dev/ttyS0 >/dev/ttyS0 2>&1 &
run_start_script
serve
