#!/bin/sh
# First program of the lab's kernel: the host's files, read-only, under an overlay in memory; then boot.sh on top of them.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
for module in /mod/*; do $bb insmod "$module" || echo "insmod $module failed"; done
share="-t 9p -o trans=virtio,version=9p2000.L,msize=512000"
$bb mount $share,ro,cache=loose root /low || exec $bb poweroff -f
$bb mount -t tmpfs rw /rw
$bb mkdir /rw/up /rw/work
$bb mount -t overlay -o lowerdir=/low,upperdir=/rw/up,workdir=/rw/work overlay /new || exec $bb poweroff -f
$bb mount -t tmpfs run /new/run
$bb mkdir -p /new/out /new/run/lab
$bb mount $share control /new/run/lab || exec $bb poweroff -f
$bb mount $share out /new/out || exec $bb poweroff -f
$bb mount -t proc proc /new/proc
$bb mount -t sysfs sys /new/sys
$bb mount -t devtmpfs dev /new/dev
$bb mkdir -p /new/dev/pts /new/dev/shm
$bb ln -s /proc/self/fd /new/dev/fd
$bb mount -t devpts pts /new/dev/pts
$bb mount -t tmpfs shm /new/dev/shm
exec $bb switch_root /new /bin/bash /run/lab/boot.sh
