# Ends the processes that carry out what came over a former connection, with all that these have started, and waits until they
# are gone: what they have not written by then, nobody writes any more. Arguments: BOOT PID:START ..., as identify.sh says them.
read -r boot </proc/sys/kernel/random/boot_id || exit 1
[ "$boot" = "$1" ] || exit 0
shift
of() {
	line=
	read -r line 2>/dev/null <"/proc/$1/stat" || [ -n "$line" ] || return 1
	set -f
	set -- ${line##*") "}
	set +f
	state=$1 parent=$2 threads=${18} start=${20}
}
# The first thread of a process may have ended while others are still in the middle of a write.
lives() {
	of "${1%:*}" && [ "$start" = "${1#*:}" ] && [ "$state" != X ] && { [ "$state" != Z ] || [ "$threads" -gt 1 ]; }
}
turn=0
pause() {
	turn=$((turn + 1))
	if [ "$turn" -gt 1000 ]; then
		echo "process ${1%:*} of a former connection does not end" >&2
		exit 75
	fi
	sleep 0.05
}
# Each is stopped before its children are looked for, and starts no others then. Nothing stays stopped.
stopped= found= rest="$*"
trap '[ -z "$stopped" ] || kill -KILL "$stopped" 2>/dev/null' EXIT
trap 'exit 75' HUP INT TERM
while [ -n "$rest" ]; do
	next=
	for process in $rest; do
		lives "$process" || continue
		found="$found $process" stopped=${process%:*}
		kill -STOP "$stopped" 2>/dev/null
		while lives "$process" && [ "$state" != T ] && [ "$state" != t ] && [ "$state" != Z ]; do
			pause "$process"
		done
		for dir in /proc/[0-9]*; do
			if of "${dir#/proc/}" && [ "$parent" = "$stopped" ]; then
				next="$next ${dir#/proc/}:$start"
			fi
		done
		kill -KILL "$stopped" 2>/dev/null
		stopped=
	done
	rest=$next
done
for process in $found; do
	while lives "$process"; do
		pause "$process"
	done
done
