// Batch norm on the blocked layout, with the tensor that may be added to it and the ReLU
// that may follow. A channel is done from its first pass to its last, while it is in the
// caches.
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

struct Channels {
    int64_t count, size, examples;  // size: vectors of a plane

    int64_t blocks() const { return parts_of(examples, LANES); }
    double values() const { return static_cast<double>(examples) * size; }
    int64_t plane(int64_t block, int64_t channel) const {
        return (block * count + channel) * size * LANES;
    }
    // Examples in a block, behind which there is padding.
    int64_t lanes(int64_t block) const { return minimum(LANES, examples - block * LANES); }
};

// The first lanes, zeros behind them whatever was there.
static SF_INLINE v16 first_lanes(v16 v, int64_t lanes) {
    float all[LANES], none[LANES] = {};
    store(all, v);
    memcpy(none, all, lanes * sizeof(float));
    return load(none);
}

// Sums K terms over the values of a channel: term(at) of the vector at an offset.
template <int K, class Term>
static SF_INLINE void sum_channel(const Channels &s, int64_t channel, double *sums, Term term) {
    constexpr int CHAINS = 4;  // so that none waits for the last
    for (int k = 0; k < K; k++) sums[k] = 0;
    for (int64_t b = 0; b < s.blocks(); b++) {
        v16 sum[CHAINS][K], one[K];
        SF_UNROLL
        for (int u = 0; u < CHAINS; u++)
            SF_UNROLL
            for (int k = 0; k < K; k++) sum[u][k] = splat(0.0f);
        const int64_t from = s.plane(b, channel), end = from + s.size * LANES;
        int64_t at = from;
        for (; at + CHAINS * LANES <= end; at += CHAINS * LANES)
            SF_UNROLL
            for (int u = 0; u < CHAINS; u++) {
                term(at + u * LANES, one);
                SF_UNROLL
                for (int k = 0; k < K; k++) sum[u][k] += one[k];
            }
        for (; at < end; at += LANES) {
            term(at, one);
            SF_UNROLL
            for (int k = 0; k < K; k++) sum[0][k] += one[k];
        }
        SF_UNROLL
        for (int k = 0; k < K; k++)
            sums[k] += total(first_lanes((sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]),
                                         s.lanes(b)));
    }
}

static SF_INLINE v16 minus(v16 a, v16 b) {
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) a.piece[i] -= b.piece[i];
    return a;
}

static void mean_and_variance(const Channels &s, int64_t channel, const float *x, float *mean,
                              float *variance) {
    double sum;
    sum_channel<1>(s, channel, &sum, [=](int64_t at, v16 *one) SF_ALWAYS { *one = load(x + at); });
    *mean = static_cast<float>(sum / s.values());
    const v16 middle = splat(*mean);
    sum_channel<1>(s, channel, &sum, [=](int64_t at, v16 *one) SF_ALWAYS {
        const v16 d = minus(load(x + at), middle);
        *one = d * d;
    });
    *variance = static_cast<float>(sum / s.values());
}

template <bool ADD, bool RELU>
static void normalise(const Channels &s, int64_t channel, const float *x, const float *added,
                      float mean, float scale, float shift, float *y) {
    const v16 middle = splat(mean), factor = splat(scale), offset = splat(shift);
    for (int64_t b = 0; b < s.blocks(); b++) {
        const int64_t from = s.plane(b, channel), end = from + s.size * LANES;
        for (int64_t at = from; at < end; at += LANES) {
            v16 v = minus(load(x + at), middle) * factor + offset;
            if (ADD) v = v + load(added + at);
            store(y + at, RELU ? positive(v) : v);
        }
    }
}

static int norm_forward(int64_t channels, int64_t size, int64_t examples, double epsilon,
                        int64_t counts, const float *x, const float *added, const float *weight,
                        const float *bias, float *mean, float *variance, float *y, int64_t relu,
                        int64_t threads) {
    const Channels s = {channels, size, examples};
    const auto pass = added ? (relu ? normalise<true, true> : normalise<true, false>)
                            : (relu ? normalise<false, true> : normalise<false, false>);
    parallel(threads, channels, [=](int64_t c) {
        if (counts) mean_and_variance(s, c, x, mean + c, variance + c);
        const double inverse = 1 / __builtin_sqrt(variance[c] + epsilon);
        pass(s, c, x, added, mean[c], static_cast<float>(weight ? weight[c] * inverse : inverse),
             bias ? bias[c] : 0.0f, y);
    });
    return 0;
}

// What the way back of a channel reads: the gradient by the output behind a ReLU, y.
template <bool RELU>
static SF_INLINE v16 behind(const float *dy, const float *y) {
    v16 g = load(dy);
    if (RELU) {
        const v16 v = load(y);
        SF_UNROLL
        for (int i = 0; i < PIECES; i++) g.piece[i] = v.piece[i] <= 0 ? Piece{} : g.piece[i];
    }
    return g;
}

struct NormGradients {
    float *dx, *dadded;
};

// dx = scale (g - shift - (x - mean) slope), zero in the padding; dadded = g if there is one.
template <bool RELU>
static void spread_norm(const Channels &s, int64_t channel, const float *x, const float *y,
                        const float *dy, float mean, const float (&by)[3],
                        const NormGradients &to) {
    const v16 middle = splat(mean), scale = splat(by[0]), shift = splat(by[1]),
              slope = splat(by[2]);
    for (int64_t b = 0; b < s.blocks(); b++) {
        const int64_t lanes = s.lanes(b);
        const int64_t from = s.plane(b, channel), end = from + s.size * LANES;
        for (int64_t at = from; at < end; at += LANES) {
            const v16 g = behind<RELU>(dy + at, y + at);
            if (to.dadded) store(to.dadded + at, g);
            const v16 d = minus(load(x + at), middle);
            const v16 v = scale * minus(minus(g, shift), d * slope);
            store(to.dx + at, lanes < LANES ? first_lanes(v, lanes) : v);
        }
    }
}

template <bool RELU>
static void norm_channel_back(const Channels &s, int64_t c, double inverse, bool counts,
                              const float *x, const float *y, const float *dy,
                              const float *weight, float mean, const NormGradients &to,
                              float *dweight, float *dbias) {
    double sums[2];
    const v16 middle = splat(mean);
    sum_channel<2>(s, c, sums, [=](int64_t at, v16 *one) SF_ALWAYS {
        one[0] = behind<RELU>(dy + at, y + at);
        one[1] = one[0] * minus(load(x + at), middle);
    });
    dbias[c] = static_cast<float>(sums[0]);
    dweight[c] = static_cast<float>(sums[1] * inverse);
    const double share = counts ? 1 / s.values() : 0;
    const float by[3] = {static_cast<float>(weight ? weight[c] * inverse : inverse),
                         static_cast<float>(sums[0] * share),
                         static_cast<float>(sums[1] * share * inverse * inverse)};
    spread_norm<RELU>(s, c, x, y, dy, mean, by, to);
}

static int norm_gradient(int64_t channels, int64_t size, int64_t examples, double epsilon,
                         int64_t counts, const float *x, const float *y, const float *dy,
                         const float *weight, const float *mean, const float *variance,
                         float *dx, float *dadded, float *dweight, float *dbias,
                         int64_t threads) {
    const Channels s = {channels, size, examples};
    parallel(threads, channels, [=](int64_t c) {
        const double inverse = 1 / __builtin_sqrt(variance[c] + epsilon);
        const auto back = y ? norm_channel_back<true> : norm_channel_back<false>;
        back(s, c, inverse, counts, x, y, dy, weight, mean[c], {dx, dadded}, dweight, dbias);
    });
    return 0;
}

}  // namespace SF_LEVEL
