// fault.hpp — a wild pointer in a kernel ends the launch, not the Python process: signals raised on a fibre's stack
// become a DeviceError.
#pragma once
#include <csignal>
#include <string>

namespace rdmakit::emu {

struct Fibre;

// " [at module+0x1,0x2]": where in its kernel's code a fibre stands that has left its stack, innermost call first; "" if
// that cannot be told.
std::string describe_place(const Fibre& fibre);

// Also ends a fibre that has run for seconds of CPU time without one step that the scheduler saw: an empty endless loop.
// Installs handlers for SIGSEGV, SIGBUS, SIGFPE and SIGILL while it lives; elsewhere than on a fibre the signal goes to
// whoever handled it before. Does nothing under AddressSanitizer, which wants the signal for itself.
class FaultGuard {
  public:
    FaultGuard();
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
    FaultGuard& operator=(const FaultGuard&) = delete;
};

}  // namespace rdmakit::emu
