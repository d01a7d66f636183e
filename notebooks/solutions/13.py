# %%
from rdmakit.explore import Explorer

# %% exercise="13.dbr_first"
# exercise: 13.dbr_first
numbers = {line.strip(): number for number, line in enumerate(THEIRS.splitlines())}  # noqa: F821  the notebook's
record, bell = numbers["set(r.sent, upto & 0xffff);"], numbers["set(r.page, doorbell_next(r.qp->qpn, upto));"]
nic = "dbrec"  # only who believes the record can miss it
explorer = Explorer(theirs, code=exchanged(THEIRS, record, bell), nic=nic)  # noqa: F821
seed = explorer.run(100).failure.seed
