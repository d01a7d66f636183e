// main.cpp — runs the HCA's native tests: all, those whose names contain the first argument, or --fuzz SEED COUNT.
#include "rig.hpp"

namespace rdmakit::test {
void fuzz(u64 seed, u64 count);
}

using namespace rdmakit;
using namespace rdmakit::test;

int main(int count, char** arguments) {
    if (count == 4 && std::strcmp(arguments[1], "--fuzz") == 0) {
        fuzz(std::strtoull(arguments[2], nullptr, 0), std::strtoull(arguments[3], nullptr, 0));
        std::printf("%llu checks, %llu failures\n", g_checks, g_failures);
        return g_failures != 0;
    }
    u32 run = 0;
    for (const Test& test : tests()) {
        if (count > 1 && !std::strstr(test.name, arguments[1])) continue;
        g_test = test.name;
        g_context.clear();
        test.run();
        ++run;
    }
    std::printf("%u tests, %llu checks, %llu failures\n", run, g_checks, g_failures);
    return g_failures != 0 || run == 0;
}
