// Fresh memory for large results.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace SF_LEVEL {

// Asks the system for large pages behind a result that is about to be written: on small
// ones, the first touch of each costs more than the kernels themselves. No effect on what
// the memory holds, nor where the system has no such pages.
static inline void expect(float *to, int64_t vectors) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, at = reinterpret_cast<uintptr_t>(to);
    const uintptr_t begin = (at + page - 1) / page * page, end = (at + vectors * 64) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)to, (void)vectors;
#endif
}

}  // namespace SF_LEVEL
