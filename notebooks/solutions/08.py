# %%
import numpy as np

from rdmakit.device import connected_pair


# %% exercise="08.naive_flag"
# exercise: 08.naive_flag
def wire(world):
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    data = far.pd.register(world.array(4, np.uint64, name="data"))
    # PCIe lets a relaxed write pass those in front of it: the flag passes the data, whatever the data may do.
    flag = far.pd.register(world.array(1, np.uint64, name="flag"), relaxed_ordering=True)
    return near, far, data, flag
