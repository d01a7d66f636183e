// qp_state.hpp — the RC queue pair's state machine: which transitions exist, and which attributes each needs and takes.
// Leans on attributes.hpp. Source: IBTA vol. 1 §11.2.5.2 as tabulated in the kernel's drivers/infiniband/core/verbs.c
// (qp_state_table, ib_modify_qp_is_ok) and in man ibv_modify_qp.
#pragma once
#include "attributes.hpp"

namespace rdmakit::emu {

struct QpTransition {
    bool valid;
    u32 required, optional;  // kQpAttr* bits; kQpAttrState always counts as given
};

QpTransition qp_transition(QpState from, QpState to);
const char* qp_state_name(QpState state);
// Writes "PATH_MTU|DEST_QPN" or so into text, and returns it.
const char* qp_attr_names(u32 mask, char* text, u32 size);

}  // namespace rdmakit::emu
