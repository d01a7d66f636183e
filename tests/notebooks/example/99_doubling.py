# %% [markdown] tags=["question"]
# # 99 · How many slots does a ring of doubled size have?
#
# This is no lesson: it is the smallest notebook in the house form. The tests of the machinery build it, run
# it, break it and prove it, and whoever writes a notebook may start from a copy.

# %%
from rdmakit import course, show

course.begin()


@course.exercise(
    "99.double",
    hints=(
        "What does doubling do to a power of two?",
        "Each element of the list has to change, and the list keeps its length.",
        "Build a new list: for each size, the size added to itself.",
    ),
    seconds=1,
)
def _check_double(trial, double):
    answer = trial.call(double, [2, 8, 64])
    trial.is_a(answer, list, "what double returns")
    trial.has_length(answer, 3, "what double returns")
    trial.equal(answer, [4, 16, 128], "what double returns")


# %% [markdown]
# ## The picture

# %% tags=["picture"]
slots = ["done", "done", ("posted", "WRITE"), "free"]
show.queue_ring(slots, {"consumer": 2, "producer": 3}, name="SQ of 4 slots")

# %% [markdown]
# ## Predict
# Type your number in place of `None`.

# %% tags=["predict"]
course.predict("slots", "How many slots has a ring of 32, doubled?", None, "slots")

# %% [markdown]
# ## Run

# %% tags=["run"]
count = len([0] * 32 * 2)
print(count, "slots")

# %% tags=["plot"]
course.plot_prediction("slots", count)

# %% tags=["plot"]
with course.plot("Slots double with each step", "step (count)", "ring (slots)") as axes:
    axes.plot([1, 2, 3, 4], [2, 4, 8, 16], label="doubled")
    axes.plot([1, 2, 3, 4], [2, 4, 6, 8], label="two more")
    axes.legend()

# %% [markdown]
# ## Break it
# A ring of three slots is refused by hardware: sizes are powers of two.

# %% tags=["break"]
show.message_chart(
    ["host", "NIC"],
    [("host", 0, "NIC", 40, "create ring, 3 slots"), ("NIC", 50, "host", 90, "EINVAL")],
    [("NIC", 45, "no power of two", "bad")],
)

# %% [markdown]
# ## Exercise
# Write `double`: it takes a list of sizes and returns the list of the doubled sizes.


# %% tags=["exercise"] exercise="99.double"
# exercise: 99.double
def double(sizes):
    return None  # your list in place of None


# %% tags=["check"]
course.check("99.double", double)

# %% [markdown]
# ## On real hardware

# %% tags=["hardware"]
if course.hardware_cell("mlx5"):
    print("A ConnectX is here.")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# Anything at all.
