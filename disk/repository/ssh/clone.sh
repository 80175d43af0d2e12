# Copies FROM to TO, for as long as our end holds the input open. Arguments: FROM TO HOW...
from=$1 to=$2
shift 2
exec 3<&0
cp "$@" -- "$from" "$to" 3<&- &
copy=$!
{
	cat <&3
	kill "$copy"
} >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$copy"
status=$?
kill "$watch" 2>/dev/null
exit "$status"
