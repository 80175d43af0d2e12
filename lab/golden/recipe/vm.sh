
has_address() { return 1; }

down() {
	echo "tiny: $name going down ($1)"
	end_others
	umount /run/context 2>/dev/null
	mount -o remount,ro /
	"$1" -f
}

# await_button: acpid has opened what tells of the power button when it writes its file. It takes no time, or there is no button.
await_button() {
	tries=0
	until [ -e $acpid_file ] || [ $tries -ge 100 ]; do
		tries=$((tries + 1))
		sleep 0.02
	done
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
acpid_file=/run/acpid.pid
rm -f $acpid_file # of the last boot
acpid -f -l /dev/null -p $acpid_file &
start_ssh
listen
await_button
say_ready
[ -c /dev/ttyS0 ] && console </dev/ttyS0 >/dev/ttyS0 2>&1 &
run_start_script
serve
