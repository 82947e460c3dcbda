// All kernels of one level. Compiled once per level, with SF_LEVEL and its own options.
#include "conv.hpp"
#include "layout.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "pool.hpp"

#define SF_JOIN(a, b) a##b
#define SF_NAME(level) SF_JOIN(sf_table_, level)

extern const Table SF_NAME(SF_LEVEL);
const Table SF_NAME(SF_LEVEL) = {
#define SF_ENTRY(name, parameters, arguments) SF_LEVEL::name,
    SF_KERNELS(SF_ENTRY)
#undef SF_ENTRY
};
