#!/bin/sh
# Process 1 of tiny. It must never end by accident, so nothing here runs with -e.
paths=/bin:/sbin:/usr/bin:/usr/sbin
export PATH=$paths HOME=/root TERM=linux

# read_context DIR: takes the assignments of context.sh, tried in a subshell first because a syntax error
# would end process 1.
read_context() {
	unset HOSTNAME # the shell sets it by itself
	[ -r "$1/context.sh" ] || return 0
	if (. "$1/context.sh") >/dev/null 2>&1; then
		. "$1/context.sh"
	else
		echo "tiny: $1/context.sh: not plain assignments, ignored"
	fi
	export PATH=$paths HOME=/root
	unset IFS
}

set_name() {
	name=${SET_HOSTNAME:-$HOSTNAME}
	if [ -z "$name" ]; then
		name=$(hostname)
		[ "$name" != "(none)" ] || read -r name </etc/hostname
	fi
	hostname "$name"
	echo "$name" >/etc/hostname
	echo "127.0.0.1 localhost $name" >/etc/hosts
}

# device_of N MAC: the interface with that address into $device, ethN when no address is given.
device_of() {
	device=
	case $2 in
	'') [ -d "/sys/class/net/eth$1" ] && device=eth$1 ;;
	*[A-F]*) set -- "$1" "$(echo "$2" | tr A-F a-f)" ;;
	esac
	[ -n "$2" ] || return 0
	for dir in /sys/class/net/*; do
		read -r have <"$dir/address" && [ "$have" = "$2" ] && device=${dir##*/}
	done 2>/dev/null
}

# set_network: addresses of all ETHn; an interface that has one already (a container's) keeps it.
set_network() {
	ifconfig lo 127.0.0.1 up
	nameservers=$DNS address= n=0
	while [ $n -lt 16 ]; do
		eval "mac=\$ETH${n}_MAC ip=\$ETH${n}_IP mask=\$ETH${n}_MASK gateway=\$ETH${n}_GATEWAY mtu=\$ETH${n}_MTU dns=\$ETH${n}_DNS"
		if [ -n "$ip" ]; then
			device_of $n "$mac"
			if [ -z "$device" ]; then
				echo "tiny: ETH${n}_MAC $mac: no such interface"
			elif ! has_address "$device"; then
				ifconfig "$device" "$ip" netmask "${mask:-255.255.255.0}" ${mtu:+mtu "$mtu"} up
				[ -z "$gateway" ] || route add default gw "$gateway" dev "$device"
			fi
			address="$address $ip"
			nameservers="$nameservers $dns"
		fi
		n=$((n + 1))
	done
	for server in $nameservers; do
		echo "nameserver $server"
	done >/etc/resolv.conf
}

# set_login: only what the context says may log in; without a password there are keys only.
set_login() {
	[ -d /root/.ssh ] || mkdir -m 700 /root/.ssh
	[ -z "$SSH_PUBLIC_KEY" ] || (umask 077 && echo "$SSH_PUBLIC_KEY" >/root/.ssh/authorized_keys)
	keys_only=-s hash='*'
	if [ -n "$PASSWORD" ]; then
		keys_only=
		hash=$(echo "$PASSWORD" | mkpasswd -m sha256 -P 0)
	fi
	(umask 077 && echo "root:$hash:19000:0:99999:7:::" >/etc/shadow)
}

# start_ssh: a clone of a saved disk is another machine, so it gets a host key of its own. An ECDSA key,
# because with an Ed25519 key alone this dropbear offers RSA too and fails when a client prefers that.
start_ssh() {
	key=/etc/dropbear/host_ecdsa owner= self="${VMID:--} $name"
	[ -r $key.owner ] && read -r owner <$key.owner
	if [ ! -s $key ] || [ "$owner" != "$self" ]; then
		# What a dropbearkey left that was cut off by a reset would make the next one fail.
		rm -f $key $key.new*
		dropbearkey -t ecdsa -s 256 -f $key.new >/dev/null 2>&1
		mv $key.new $key
		echo "$self" >$key.owner
	fi
	dropbear -r $key $keys_only
}

say_ready() {
	echo "tiny: $name ready at${address:- no address}"
}

# run_start_script: whatever it does, tiny stays up.
run_start_script() {
	if [ -n "$START_SCRIPT_BASE64" ]; then
		echo "$START_SCRIPT_BASE64" | base64 -d >/run/start_script
	elif [ -n "$START_SCRIPT" ]; then
		echo "$START_SCRIPT" >/run/start_script
	else
		return 0
	fi
	chmod 700 /run/start_script
	read -r first </run/start_script
	case $first in
	'#!'*) /run/start_script & ;;
	*) sh /run/start_script & ;;
	esac
}

# others: are there processes besides this one? Kernel threads and dead ones have no command line.
others() {
	for file in /proc/[0-9]*/cmdline; do
		line=
		read -r line <"$file"
		[ -z "$line" ] || [ "$file" = /proc/1/cmdline ] || return 0
	done 2>/dev/null
	return 1
}

end_others() {
	trap '' TERM INT PWR USR1 USR2 HUP
	kill -TERM -1
	kill -HUP -1 # a shell somebody types in ignores TERM
	tries=0
	while others && [ $tries -lt 20 ]; do
		tries=$((tries + 1))
		sleep 0.1
	done
	kill -KILL -1
	sync
}

# listen: the kernel drops signals that process 1 has no trap for, so this comes before anybody knows that tiny is there.
listen() {
	trap 'down poweroff' PWR USR1 USR2
	trap 'down reboot' TERM INT
}

# serve: waits for the signal to end; wait also buries orphans.
serve() {
	while :; do
		sleep 86400 &
		wait $!
	done
}
