# Ends the processes that carry out what came over a former connection, and waits until they are gone: what they have not
# written by then, nobody writes any more. Arguments: BOOT PID:START ..., as identify.sh says them.
read -r boot </proc/sys/kernel/random/boot_id || exit 1
[ "$boot" = "$1" ] || exit 0
shift
of() {
	line=
	read -r line 2>/dev/null <"/proc/$1/stat" || [ -n "$line" ] || return 1
	set -f
	set -- ${line##*") "}
	set +f
	state=$1 parent=$2 start=${20}
}
lives() {
	of "${1%:*}" && [ "$start" = "${1#*:}" ] && [ "$state" != Z ] && [ "$state" != X ]
}
all="$*"
if lives "$1"; then
	for dir in /proc/[0-9]*; do
		if of "${dir#/proc/}" && [ "$parent" = "${1%:*}" ]; then
			all="$all ${dir#/proc/}:$start"
		fi
	done
fi
for process in $all; do
	if lives "$process"; then
		kill -KILL "${process%:*}"
	fi
done
for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do
	left=
	for process in $all; do
		if lives "$process"; then
			left="$left ${process%:*}"
		fi
	done
	[ -n "$left" ] || exit 0
	sleep 0.2
done
echo "process$left of a former connection does not end" >&2
exit 75
