# Two hosts as network namespaces h0 and h1, with two links between them: p0 and p1 are the two ports of each host, and
# h0r0, h0r1, h1r0, h1r1 the soft-RoCE devices on them. Host N has 10.9.PORT.(N+1). Rdma devices are of one namespace
# (exclusive mode, which must be chosen before any namespace is there); names are of the whole machine.
modprobe -a veth rdma_rxe ib_uverbs || return
rdma system set netns exclusive || return
# Few programs, much said to each: an emulated processor takes a fifth of a second to start one.
# RoCE's MTU of 4096 and its headers fit into 4200.
ip -batch - <<'LINKS' || return
netns add h0
netns add h1
link add p0 mtu 4200 netns h0 type veth peer name p0 mtu 4200 netns h1
link add p1 mtu 4200 netns h0 type veth peer name p1 mtu 4200 netns h1
LINKS
for host in 0 1; do
    ip -n "h$host" -batch - <<ADDRESSES || return
link set lo up
addr add 10.9.0.$((host + 1))/24 dev p0
addr add 10.9.1.$((host + 1))/24 dev p1
link set p0 up
link set p1 up
ADDRESSES
    # A link keeps the order of its packets. veth's would not behind a queue discipline, whose packets leave on whichever
    # processor has a turn: each port's are received on one (RPS, Documentation/networking/scaling.rst).
    ip netns exec "h$host" bash -c '
        for port in 0 1; do
            printf %x $((1 << port % $(nproc))) > "/sys/class/net/p$port/queues/rx-0/rps_cpus" || exit
        done
        exec rdma -b -' <<DEVICES || return
link add h${host}r0 type rxe netdev p0
link add h${host}r1 type rxe netdev p1
DEVICES
done
rdma -b - <<'HOSTS' || return
dev set h0r0 netns h0
dev set h0r1 netns h0
dev set h1r0 netns h1
dev set h1r1 netns h1
HOSTS
