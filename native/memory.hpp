// Writing past the caches.
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

// A result so large that none of it is in a cache when it is next read. Its lines need not
// be read before they are written, which otherwise is as much traffic again.
constexpr int64_t STREAMED = 12 << 20;  // bytes

static SF_INLINE bool streamed(const float *to, int64_t vectors) {
    return vectors * 64 >= STREAMED && reinterpret_cast<uintptr_t>(to) % SF_REGISTER == 0;
}

// `to` is aligned.
static SF_INLINE void stream(float *to, Piece v) {
#if defined(__clang__)
    __builtin_nontemporal_store(v, reinterpret_cast<Piece *>(to));
#elif defined(__AVX512F__)
    __builtin_ia32_movntps512(to, v);
#elif defined(__AVX__)
    __builtin_ia32_movntps256(to, v);
#elif defined(__SSE__)
    __builtin_ia32_movntps(to, v);
#else
    *reinterpret_cast<Piece *>(to) = v;
#endif
}

// Once a thread has streamed: what it wrote is there for the others.
static SF_INLINE void end_stream() {
#if defined(__SSE__)
    __builtin_ia32_sfence();
#endif
}

}  // namespace SF_LEVEL
