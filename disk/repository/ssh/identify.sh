# Says which processes of the storage server carry out what comes over this connection: "BOOT PID:START ...", that
# of sshd first, and what it has started for us.
read -r boot </proc/sys/kernel/random/boot_id || exit 1
# of PID: what /proc tells of it. Its name, in parentheses, may hold anything.
of() {
	line=
	read -r line 2>/dev/null <"/proc/$1/stat" || [ -n "$line" ] || return 1
	set -f
	set -- ${line##*") "}
	set +f
	parent=$2 start=${20}
}
of "$PPID" || exit 1
all="$PPID:$start"
for dir in /proc/[0-9]*; do
	pid=${dir#/proc/}
	if of "$pid" && [ "$parent" = "$PPID" ] && [ "$pid" != "$$" ]; then
		all="$all $pid:$start"
	fi
done
echo "$boot $all"
