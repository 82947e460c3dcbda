// The exported functions, and the choice of the level that they use.
#include <string.h>

#include "table.hpp"

sf_fork_function sf_fork = nullptr;

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

int sf_set_level(const char *name) {
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
