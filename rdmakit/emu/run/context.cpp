// context.cpp — see context.hpp. System V x86-64 psABI 1.0 §3.2.1; AAPCS64 §6.1.
#include "context.hpp"

#include <cstdint>

#if defined(__x86_64__)
asm(R"(
    .text
    .globl rdmakit_switch_stack
    .hidden rdmakit_switch_stack
    .type rdmakit_switch_stack, @function
rdmakit_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size rdmakit_switch_stack, .-rdmakit_switch_stack
)");
namespace rdmakit::emu {
void* prepare_stack(void* top, void (*entry)()) {
    auto* sp = static_cast<std::uintptr_t*>(top);
    *--sp = 0;  // the return address of entry, and the alignment that a call would leave
    *--sp = reinterpret_cast<std::uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--sp = 0;
    return sp;
}
}  // namespace rdmakit::emu
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl rdmakit_switch_stack
    .hidden rdmakit_switch_stack
    .type rdmakit_switch_stack, %function
rdmakit_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size rdmakit_switch_stack, .-rdmakit_switch_stack
)");
namespace rdmakit::emu {
void* prepare_stack(void* top, void (*entry)()) {
    auto* sp = static_cast<std::uintptr_t*>(top) - 20;
    for (int i = 0; i < 20; ++i) sp[i] = 0;
    sp[11] = reinterpret_cast<std::uintptr_t>(entry);  // x30, where ret goes
    return sp;
}
}  // namespace rdmakit::emu
#else
#error "rdmakit's CPU runner switches stacks on x86-64 and aarch64 only"
#endif
