// The kernels of one level, as a table of functions.
#pragma once

#include "sparseflow.h"

struct Table {
#define SF_MEMBER(name, parameters, arguments) int (*name) parameters;
    SF_KERNELS(SF_MEMBER)
#undef SF_MEMBER
};

extern sf_fork_function sf_fork;
extern int64_t sf_near;  // bytes that stay in the first-level cache beside what passes through
