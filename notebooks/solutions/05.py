# %% exercise="05.crossover"
# exercise: 05.crossover
def crossover(post_ns, doorbell_ns, each, port_gbps):
    per_message = post_ns + doorbell_ns / each  # the bell is shared by `each` WQEs
    return per_message * port_gbps / 8  # what the wire carries meanwhile; a gigabit a second is 1/8 byte a nanosecond
