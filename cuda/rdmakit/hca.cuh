// rdmakit/hca.cuh — the pure part of the emulated HCA: what a ConnectX makes of WQE bytes, keys, atomics and CQEs.
// Layer: hca (leans on wqe). Shared by the CPU engine (rdmakit/emu/hca) and by GPU engines: no allocation, no shared
// state, no asm. An engine adds queues, connections, time and the copying of payload.
#pragma once
#include "hca_atomic.cuh"
#include "hca_cqe.cuh"
#include "hca_key.cuh"
#include "hca_wqe.cuh"
