// flag_behind_data.cu — a WRITE of data and, behind it on the same queue pair, a WRITE of a flag. When may it be believed?
//
//     rdmakit explore tutorials/flag_behind_data.cu                                # it holds: RC places WRITEs in order
//     rdmakit explore tutorials/flag_behind_data.cu --set ordering=relaxed         # and here it does not
//     rdmakit explore tutorials/flag_behind_data.cu --set ordering=out_of_order
//
// `rdmakit explore FILE.cu` wants these two kernels with these parameters, and sees whether `copy` is what was sent.
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL send(const QpHandle* qp, RemoteMemory to, LocalMemory from, unsigned long long bytes, RemoteMemory word) {
    if (thread_in_block() != 0 || block_id() != 0) return;
    if (put(*qp, to, from, bytes) == Status::ok && put_word(*qp, word, 1) == Status::ok) quiet(*qp);
    // signal(*qp, word, 1) in place of put_word is an atomic, and right in all three.
}

RDMAKIT_KERNEL receive(const unsigned long long* word, const unsigned char* data, unsigned long long bytes,
                       unsigned char* copy, Watch watch) {
    if (thread_in_block() != 0 || block_id() != 0) return;
    u64 seen = 0;
    if (wait_signal(word, 1, watch, Subject{"the flag", 1, 0, 0, 0}, &seen) != Status::ok) return;
    for (u64 i = 0; i < bytes; ++i) copy[i] = data[i];
}
