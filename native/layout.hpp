// Between (examples, features) and the blocked layout (blocks, features, 16).
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

// Transposes 4 x 4 floats; rows from `rows` on are zero when read and left out when written.
static SF_INLINE void transpose(const float *from, int64_t from_step, int64_t from_rows, float *to,
                                int64_t to_step, int64_t to_rows) {
#if defined(__clang__)
#define SF_MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
    typedef int32_t Mix __attribute__((vector_size(16)));
#define SF_MIX(a, b, ...) __builtin_shuffle(a, b, Mix{__VA_ARGS__})
#endif
    quad r[4] = {};
    SF_UNROLL
    for (int i = 0; i < 4; i++)
        if (i < from_rows) r[i] = *reinterpret_cast<const quad_anywhere *>(from + i * from_step);
    const quad a = SF_MIX(r[0], r[1], 0, 4, 1, 5), b = SF_MIX(r[2], r[3], 0, 4, 1, 5);
    const quad c = SF_MIX(r[0], r[1], 2, 6, 3, 7), d = SF_MIX(r[2], r[3], 2, 6, 3, 7);
    const quad w[4] = {SF_MIX(a, b, 0, 1, 4, 5), SF_MIX(a, b, 2, 3, 6, 7), SF_MIX(c, d, 0, 1, 4, 5),
                     SF_MIX(c, d, 2, 3, 6, 7)};
    SF_UNROLL
    for (int i = 0; i < 4; i++)
        if (i < to_rows) *reinterpret_cast<quad_anywhere *>(to + i * to_step) = w[i];
#undef SF_MIX
}

// Calls body(batch block, examples in it, first feature, last) for pieces of a batch.
template <class Body>
static void pieces(int64_t examples, int64_t features, int64_t threads, Body body) {
    constexpr int64_t SIZE = 4096;  // features
    const int64_t cuts = parts_of(features, SIZE);
    parallel(threads, parts_of(examples, LANES) * cuts, [=](int64_t part) {
        const int64_t b = part / cuts, begin = part % cuts * SIZE;
        body(b, minimum(LANES, examples - b * LANES), begin, minimum(features, begin + SIZE));
    });
}

static int block(const float *x, int64_t examples, int64_t features, float *y,
                 int64_t threads) {
    pieces(examples, features, threads, [=](int64_t b, int64_t lanes, int64_t f, int64_t end) {
        const float *from = x + b * LANES * features;
        float *to = y + b * LANES * features;
        // A whole cache line of each example at a time.
        for (; f + LANES <= end; f += LANES)
            for (int64_t lane = 0; lane < LANES; lane += 4)
                SF_UNROLL
                for (int64_t i = 0; i < LANES; i += 4)
                    transpose(from + lane * features + f + i, features, lanes - lane,
                              to + (f + i) * LANES + lane, LANES, 4);
        for (; f < end; f++)
            for (int64_t lane = 0; lane < LANES; lane++)
                to[f * LANES + lane] = lane < lanes ? from[lane * features + f] : 0.0f;
    });
    return 0;
}

static int unblock(const float *x, int64_t examples, int64_t features, float *y,
                   int64_t threads) {
    pieces(examples, features, threads, [=](int64_t b, int64_t lanes, int64_t f, int64_t end) {
        const float *from = x + b * LANES * features;
        float *to = y + b * LANES * features;
        for (; f + LANES <= end; f += LANES)
            for (int64_t lane = 0; lane < lanes; lane += 4)
                SF_UNROLL
                for (int64_t i = 0; i < LANES; i += 4)
                    transpose(from + (f + i) * LANES + lane, LANES, 4,
                              to + lane * features + f + i, features, lanes - lane);
        for (; f < end; f++)
            for (int64_t lane = 0; lane < lanes; lane++)
                to[lane * features + f] = from[f * LANES + lane];
    });
    return 0;
}

}  // namespace SF_LEVEL
