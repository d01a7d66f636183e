// context.hpp — switching between stacks: our own, since swapcontext makes a system call for the signal mask.
// Saves what the platform's calling convention calls callee-saved and nothing else.
#pragma once

namespace rdmakit::emu {

// Stores the current stack pointer in *save, continues on the stack `load`.
extern "C" void rdmakit_switch_stack(void** save, void* load);

// Prepares a stack so that the first switch to it calls entry() at `top` (16-byte aligned). entry must not return.
void* prepare_stack(void* top, void (*entry)());

}  // namespace rdmakit::emu
