#include "library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

namespace rdmakit::verbs {
namespace {

std::string path_of(void* symbol) {
    Dl_info info;
    return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

template <class F>
bool look_up(void* handle, const char* name, F& call) {
    call = reinterpret_cast<F>(dlsym(handle, name));
    return call != nullptr;
}

void* open_library(const char* variable, const char* soname, std::string* why) {
    const char* named = std::getenv(variable);
    const char* path = named != nullptr && *named != '\0' ? named : soname;
    void* handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);  // providers resolve their symbols in libibverbs
    if (handle == nullptr) {
        const char* said = dlerror();
        *why = said != nullptr ? said : path;
    }
    return handle;
}

bool load(Library& into, std::string* why) {
    void* ibverbs = open_library("RDMAKIT_LIBIBVERBS", "libibverbs.so.1", why);
    if (ibverbs == nullptr) return false;
    const char* lacks = nullptr;
#define RDMAKIT_REQUIRE(result, name, parameters) \
    if (!look_up(ibverbs, "ibv_" #name, into.name)) lacks = "ibv_" #name;
    RDMAKIT_IBVERBS_REQUIRED(RDMAKIT_REQUIRE)
#undef RDMAKIT_REQUIRE
    if (lacks != nullptr) {
        *why = std::string(lacks) + " is not in libibverbs.so.1";
        dlclose(ibverbs);
        return false;
    }
    auto note = [&into](const char* name, const char* version) {
        into.missing += (into.missing.empty() ? "" : ", ") + std::string(name) + " (" + version + ")";
    };
#define RDMAKIT_PROBE(result, name, parameters, version) \
    if (!look_up(ibverbs, "ibv_" #name, into.name)) note("ibv_" #name, version);
    RDMAKIT_IBVERBS_OPTIONAL(RDMAKIT_PROBE)
#undef RDMAKIT_PROBE
    into.ibverbs_path = path_of(reinterpret_cast<void*>(into.get_device_list));
    if (void* mlx5 = open_library("RDMAKIT_LIBMLX5", "libmlx5.so.1", &into.mlx5_missing)) {
#define RDMAKIT_PROBE(result, name, parameters, version) \
    if (!look_up(mlx5, "mlx5dv_" #name, into.mlx5dv.name)) note("mlx5dv_" #name, version);
        RDMAKIT_MLX5DV_OPTIONAL(RDMAKIT_PROBE)
#undef RDMAKIT_PROBE
        into.mlx5_path = path_of(reinterpret_cast<void*>(into.mlx5dv.init_obj));
    }
    return true;
}

}  // namespace

const Library* library(std::string* why) {
    static std::mutex mutex;
    static Library found;
    static bool loaded = false;
    const std::lock_guard<std::mutex> hold(mutex);
    if (!loaded) {
        found = Library();
        loaded = load(found, why);
    }
    return loaded ? &found : nullptr;
}

}  // namespace rdmakit::verbs
