# Holds locks as driver path holds them, for as long as a byte comes in at least every LEASE seconds.
# Arguments: LEASE BASE PART OBJECT LOCK [LOCK2]. Says "busy" or "locked", and when OBJECT is not empty, "locked NOW CHANGED"
# with the clock in nanoseconds and its time of change. In the end PART, when it is not empty, and the lock files are removed,
# and with PART folders below BASE that are empty then.
umask 077
lease=$1 base=$2 part=$3 object=$4 first=$5 second=$6
take() {
	while :; do
		case $1 in
		8) exec 8<>"$2" || exit 74 ;;
		9) exec 9<>"$2" || exit 74 ;;
		esac
		flock -n "$1" || return 1
		# The former holder may have removed the file between our open and our lock.
		[ "/proc/self/fd/$1" -ef "$2" ] && return 0
	done
}
if ! take 8 "$first"; then
	echo busy
	exit 0
fi
if [ -n "$second" ] && ! take 9 "$second"; then
	rm -f -- "$first"
	echo busy
	exit 0
fi
if [ -n "$object" ]; then
	echo "locked $(date +%s%N) $(stat -c %z -- "$object" 2>/dev/null)"
else
	echo locked
fi
while beat=$(timeout "$lease" dd bs=1 count=1 2>/dev/null 8>&- 9>&-) && [ -n "$beat" ]; do :; done
[ -z "$part" ] || rm -f -- "$part"
[ -z "$second" ] || rm -f -- "$second"
rm -f -- "$first"
dir=${part%/*}
while [ "${#dir}" -gt "${#base}" ] && rmdir -- "$dir" 2>/dev/null; do
	dir=${dir%/*}
done
