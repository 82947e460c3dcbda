// The exported functions, and the choice of the level that they use.
#include <string.h>
#include <unistd.h>

#include "table.hpp"

sf_fork_function sf_fork = nullptr;
int64_t sf_near = 0;

extern const Table sf_table_portable;
#ifdef SF_V3
extern const Table sf_table_v3;
#endif
#ifdef SF_V4
extern const Table sf_table_v4;
#endif

namespace {

struct Level {
    const char *name;
    const Table *table;
    bool (*runs)();
};

// What each level was compiled for, neither more nor less (CMakeLists.txt).
const Level LEVELS[] = {
#ifdef SF_V4
    {"v4", &sf_table_v4,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
     }},
#endif
#ifdef SF_V3
    {"v3", &sf_table_v3,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", &sf_table_portable, [] { return true; }},
};

const Level *level = nullptr;

}  // namespace

int64_t sf_abi(void) { return SF_ABI; }

const char *sf_level(void) { return level ? level->name : ""; }

const char *sf_levels(void) {
    return ""
#ifdef SF_V4
           "v4 "
#endif
#ifdef SF_V3
           "v3 "
#endif
           "portable";
}

// Five sixths of the first-level cache; 32 KiB of it where the system does not say.
static int64_t near_bytes() {
    long size = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
    size = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
    return (size > 0 ? size : 32 << 10) / 6 * 5;
}

int sf_set_level(const char *name) {
    if (!sf_near) sf_near = near_bytes();
#if defined(SF_V3) || defined(SF_V4)
    __builtin_cpu_init();
#endif
    int status = 1;
    for (const Level &each : LEVELS) {
        if (name && strcmp(name, each.name)) continue;
        if (!each.runs()) {
            status = 2;
            continue;
        }
        level = &each;
        return 0;
    }
    return status;
}

void sf_set_fork(sf_fork_function fork) { sf_fork = fork; }

#define SF_DEFINE(name, parameters, arguments) \
    int sf_##name parameters { return level->table->name arguments; }
SF_KERNELS(SF_DEFINE)
