# %% exercise="12.knobs"
# exercise: 12.knobs
knobs = ("GPU rings", "signal in the data's QP")
