# %%
import numpy as np


# %% exercise="10.plan"
# exercise: 10.plan
def dispatch_layout(topk_idx, num_experts, num_ranks):
    token, choice = np.nonzero(topk_idx >= 0)
    expert = topk_idx[token, choice]
    is_token_in_rank = np.zeros((len(topk_idx), num_ranks), bool)
    is_token_in_rank[token, expert // (num_experts // num_ranks)] = True
    return is_token_in_rank.sum(axis=0), np.bincount(expert, minlength=num_experts), is_token_in_rank
