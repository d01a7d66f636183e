# %% exercise="00.find_down"
# exercise: 00.find_down
def find_down(before, after):
    for port in after:
        sent = after[port]["xmit_packets"] - before[port]["xmit_packets"]
        received = after[port]["rcv_packets"] - before[port]["rcv_packets"]
        if sent and not received:
            return port
