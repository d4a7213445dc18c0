#!/usr/bin/env bash
# A GlusterFS volume and "hosts" that mount it, on one machine. Each host has its own network, mounts, pids and host name.
# Only root can use it. Nothing outside of $BED and the namespaces changes.
#   bed.sh up HOST...       hosts with one letter each; the volume is at /mnt/bed there
#   bed.sh on HOST CMD...   run a command on a host, with the machine's own files
#   bed.sh cut HOST         take the network link of a host down, until `bed.sh mend HOST`
#   bed.sh down
set -euo pipefail
: "${BED:?a directory for all files}" "${NAME:?how the names of the namespaces begin}"
net=10.79.0 volume=bed

on() { nsenter -t "$(cat "$BED/$1.pid")" -m -p -n -u -- "${@:2}"; }

host() { # NAME NUMBER: namespaces that live as long as the process in $BED/NAME.pid
    local child=
    ip netns add "$NAME-$1"
    ip link add "$NAME$1" netns "$NAME-sw" type veth peer name eth0 netns "$NAME-$1"
    ip -n "$NAME-sw" link set "$NAME$1" master br0 up
    ip -n "$NAME-$1" addr add "$net.$2/24" dev eth0
    ip -n "$NAME-$1" link set eth0 up
    ip -n "$NAME-$1" link set lo up
    ip netns exec "$NAME-$1" unshare --mount --uts --propagation private --pid --fork --mount-proc \
        bash -c "hostname host-$1; touch '$BED/$1.ready'; exec sleep infinity" >/dev/null 2>&1 </dev/null &
    until [ -e "$BED/$1.ready" ]; do sleep 0.05; done
    child=$(pgrep -P $!)
    echo "$child" >"$BED/$1.pid"
}

case $1 in
up)
    mkdir -p "$BED"/{glusterd,log,brick}
    ip netns add "$NAME-sw"
    ip -n "$NAME-sw" link add br0 type bridge
    ip -n "$NAME-sw" link set br0 up
    host srv 1
    on srv mkdir -p /var/lib/glusterd /var/log/glusterfs
    on srv mount --bind "$BED/glusterd" /var/lib/glusterd
    on srv mount --bind "$BED/log" /var/log/glusterfs
    on srv mount -t tmpfs tmpfs /var/run
    on srv mkdir -p /var/run/gluster
    on srv glusterd -p /var/run/glusterd.pid --log-level WARNING
    until on srv gluster pool list >/dev/null 2>&1; do sleep 0.1; done
    on srv gluster --mode=script volume create $volume "$net.1:$BED/brick" force
    # With it, `stat` answers with old names for seconds.
    on srv gluster --mode=script volume set $volume performance.stat-prefetch off
    # The server frees the locks of a host that it does not hear after seconds; by default after most of a minute.
    for option in network.ping-timeout=4 server.tcp-user-timeout=4 server.keepalive-time=2 server.keepalive-interval=1; do
        on srv gluster --mode=script volume set $volume "${option%=*}" "${option#*=}"
    done
    on srv gluster --mode=script volume start $volume
    number=11
    for letter in "${@:2}"; do
        host "$letter" $number
        number=$((number + 1))
        on "$letter" mount -t tmpfs tmpfs /mnt
        on "$letter" mkdir -p /mnt/bed
        on "$letter" mount -t tmpfs tmpfs /var/log/glusterfs
        on "$letter" mount -t glusterfs -o log-level=WARNING "$net.1:/$volume" /mnt/bed
    done
    ;;
on) on "${@:2}" ;;
cut) ip -n "$NAME-sw" link set "$NAME$2" down ;;
mend) ip -n "$NAME-sw" link set "$NAME$2" up ;;
down) # the end of the first process of a pid namespace ends all others in it
    for file in "$BED"/*.pid; do
        [ ! -e "$file" ] || kill -9 "$(cat "$file")" || true
        ip netns del "$NAME-$(basename "$file" .pid)" || true
    done
    ip netns del "$NAME-sw" || true
    ;;
esac
