# %% exercise="02.protection"
# exercise: 02.protection
def local_error(qp, mine, theirs):
    qp.post_read(mine, theirs)  # a READ writes at home, and there nobody may write
    return "LOC_PROT_ERR"


def remote_error(qp, mine, theirs):
    qp.post_write(mine, theirs)  # a WRITE writes there, and there one may only read
    return "REM_ACCESS_ERR"
