#!/bin/bash
# What the lab's machine does once it has a root: networks, the two hosts, the command, and off. Control files lie in
# /run/lab: `environment` and `command` come from the launcher; `began`, `status` and `problem` go back to it.
off() {
    sync
    echo o > /proc/sysrq-trigger
    sleep 60
}

source /run/lab/environment
mkdir -p /lib/modules
ln -sfn "$RDMAKIT_LAB_MODULES" "/lib/modules/$(uname -r)"
stty -F /dev/ttyS1 raw
ip link set lo up
ulimit -l unlimited
if [ "$RDMAKIT_LAB_HOSTS" = 2 ]; then
    source /run/lab/two_hosts.sh || { echo "two_hosts.sh: exit status $?" > /run/lab/problem; off; }
fi
cd "$RDMAKIT_LAB_FOLDER" || { echo "no folder $RDMAKIT_LAB_FOLDER" > /run/lab/problem; off; }
: > /run/lab/began
bash /run/lab/command < /dev/null 2>&1 | cat > /dev/ttyS1
echo "${PIPESTATUS[0]}" > /run/lab/status
off
