# %% exercise="01.order"
# exercise: 01.order
order = [
    "here to INIT",
    "here to RTR",
    "here to RTS",
    "there to INIT",
    "there to RTR",
    "here: WRITE",
    "there to RTS",
]
