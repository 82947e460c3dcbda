// Linear layers: a sparse matrix times activations in the blocked layout.
//
// Rows are cut into panels and columns into blocks, so narrow that the activations of a
// block stay in the first caches while a panel reads them; a panel's non-zeros of a block
// are read from afar by the first tile of the batch only. pattern.py chooses the width.
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

constexpr int64_t LINEAR_TILE = 2;           // batch blocks that a product has in registers
constexpr int64_t LINEAR_GRADIENT_TILE = 4;  // and the weight gradient
constexpr int64_t PANEL = 256;               // least rows of a panel whose non-zeros lie apart
constexpr int64_t PANEL_NNZ = 1 << 17;       // and its non-zeros, if those rows have fewer
constexpr int64_t STREAM_PANEL = 1024;       // rows of one whose non-zeros of a block lie together
constexpr int64_t ROWS_AHEAD = 4;            // whose non-zeros are fetched

// A column block of some rows: row r's non-zeros are starts[r] .. ends[r].
struct Rows {
    const int32_t *starts, *ends;
    int64_t count;
    bool far;  // not in a cache yet

    SF_INLINE void fetch(int64_t row, const int32_t *index, const float *values) const {
        if (!far || row + ROWS_AHEAD >= count) return;
        for (int64_t k = starts[row + ROWS_AHEAD]; k < ends[row + ROWS_AHEAD]; k += 16) {
            __builtin_prefetch(index + k);
            __builtin_prefetch(values + k);
        }
    }
};

struct Product {
    const int32_t *index;
    const float *values, *bias, *x;
    float *y;
    int64_t x_step, y_step;  // floats from one batch block to the next
    bool first, relu;        // first: y is set, not added to
};

// y += W x for NB batch blocks, with U sums each so that none waits for the one before.
template <int NB, int U>
static void multiply(const Rows rows, const Product p) {
    for (int64_t row = 0; row < rows.count; row++) {
        v16 sum[U][NB];
        float *y = p.y + row * LANES;
        int64_t k = rows.starts[row];
        const int64_t end = rows.ends[row];
        rows.fetch(row, p.index, p.values);
        const v16 start = splat(p.bias ? p.bias[row] : 0.0f);
        SF_UNROLL
        for (int b = 0; b < NB; b++) sum[0][b] = p.first ? start : load(y + b * p.y_step);
        const auto add = [&](int64_t at, v16 *to) SF_ALWAYS {
            const v16 w = splat(p.values[at]);
            const float *x = p.x + static_cast<int64_t>(p.index[at]) * LANES;
            SF_UNROLL
            for (int b = 0; b < NB; b++) to[b] += w * load(x + b * p.x_step);
        };
        if (U > 1 && k + U <= end) {
            SF_UNROLL
            for (int u = 1; u < U; u++)
                SF_UNROLL
                for (int b = 0; b < NB; b++) sum[u][b] = splat(0.0f);
            for (; k + U <= end; k += U)
                SF_UNROLL
                for (int u = 0; u < U; u++) add(k + u, sum[u]);
            SF_UNROLL
            for (int half = U / 2; half > 0; half /= 2)
                SF_UNROLL
                for (int u = 0; u < half; u++)
                    SF_UNROLL
                    for (int b = 0; b < NB; b++) sum[u][b] += sum[u + half][b];
        }
        for (; k < end; k++) add(k, sum[0]);
        SF_UNROLL
        for (int b = 0; b < NB; b++)
            store(y + b * p.y_step, p.relu ? positive(sum[0][b]) : sum[0][b]);
    }
}

static void multiply_tile(int64_t nb, const Rows &rows, const Product &p) {
    // Sums in 8 registers of 16, or all of 4.
    if (nb == 1) multiply<1, PIECES == 4 ? 2 : 4>(rows, p);
    else multiply<LINEAR_TILE, PIECES == 4 ? 1 : 2>(rows, p);
}

// The rows of a panel of a matrix whose rows' non-zeros lie apart.
static int64_t panel_rows(int64_t rows, int64_t nnz) {
    return maximum(PANEL, PANEL_NNZ * rows / (nnz + 1));
}

// How a product is cut: parts = panels x groups of tiles.
struct Cut {
    int64_t tiles, panels, groups;

    Cut(int64_t rows, int64_t nb, int64_t panel, int64_t threads) {
        // Twice as many parts as threads, so that none waits long for another.
        const int64_t wanted = threads > 1 ? 2 * threads : 1;
        tiles = maximum(1, parts_of(nb, LINEAR_TILE));
        panels = minimum(rows, maximum(parts_of(rows, panel), parts_of(wanted, tiles)));
        groups = panels ? minimum(tiles, parts_of(wanted, panels)) : 0;
    }
};

static int linear_forward(int64_t out, int64_t in, int64_t nb, int64_t width,
                          const int32_t *starts, const int32_t *columns, const float *values,
                          const float *bias, const float *x, float *y, int64_t relu,
                          int64_t threads) {
    if (!out || !nb) return 0;
    const int64_t blocks = maximum(1, parts_of(in, width)), nnz = starts[(blocks + 1) * out - 1];
    const Cut cut(out, nb, panel_rows(out, nnz), threads);
    parallel(threads, cut.panels * cut.groups, [=](int64_t part) {
        const int64_t panel = part / cut.groups, group = part % cut.groups;
        const int64_t row = split(starts, out, nnz, panel, cut.panels);
        const int64_t count = split(starts, out, nnz, panel + 1, cut.panels) - row;
        const int64_t begin = cut.tiles * group / cut.groups * LINEAR_TILE;
        const int64_t end = minimum(nb, cut.tiles * (group + 1) / cut.groups * LINEAR_TILE);
        for (int64_t c = 0; c < blocks; c++)
            for (int64_t b = begin; b < end; b += LINEAR_TILE) {
                const int32_t *of = starts + c * out + row;
                const Rows rows = {of, of + out, count, b == begin};
                const Product p = {columns, values, bias ? bias + row : nullptr,
                                   x + b * in * LANES, y + (b * out + row) * LANES, in * LANES,
                                   out * LANES, c == 0, relu && c + 1 == blocks};
                multiply_tile(minimum(LINEAR_TILE, end - b), rows, p);
            }
    });
    return 0;
}

// One example in the plain layout: the entries of x that a row reads fit the first cache,
// where 16 lanes of them would not.
static int linear_single(int64_t out, const int32_t *pointers,
                         const int32_t *columns, const float *values, const float *bias,
                         const float *x, float *y, int64_t relu, int64_t threads) {
    const int64_t parts = threads > 1 ? minimum(out, 2 * threads) : minimum(out, 1);
    parallel(threads, parts, [=](int64_t part) {
        const int64_t end = split(pointers, out, part + 1, parts);
        for (int64_t row = split(pointers, out, part, parts); row < end; row++) {
            const int32_t *c = columns + pointers[row], *end_c = columns + pointers[row + 1];
            const float *v = values + pointers[row];
            quad sum = {}, other = {};  // two, so that one need not wait for the other
            for (; c + 8 <= end_c; c += 8, v += 8) {
                const quad near = {x[c[0]], x[c[1]], x[c[2]], x[c[3]]};
                const quad far = {x[c[4]], x[c[5]], x[c[6]], x[c[7]]};
                sum += near * *reinterpret_cast<const quad_anywhere *>(v);
                other += far * *reinterpret_cast<const quad_anywhere *>(v + 4);
            }
            sum += other;
            float total = bias ? bias[row] : 0.0f;
            for (; c < end_c; c++, v++) total += *v * x[*c];
            total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
            y[row] = relu && total < 0 ? 0 : total;
        }
    });
    return 0;
}

static int linear_input_gradient(int64_t out, int64_t in, int64_t nb, int64_t width,
                                 const int32_t *starts, const int32_t *rows,
                                 const int32_t *order, const float *values, const float *dy,
                                 float *dx, int64_t threads) {
    if (!in || !nb) return 0;
    const Cut cut(in, nb, STREAM_PANEL, threads);
    int failed = 0;
    parallel(threads, cut.panels * cut.groups, [=, &failed](int64_t part) {
        const int64_t panel = part / cut.groups, group = part % cut.groups;
        const int64_t row = in * panel / cut.panels;
        const int64_t count = in * (panel + 1) / cut.panels - row;
        const int64_t begin = cut.tiles * group / cut.groups * LINEAR_TILE;
        const int64_t end = minimum(nb, cut.tiles * (group + 1) / cut.groups * LINEAR_TILE);
        const int64_t blocks = maximum(1, parts_of(out, width));
        int64_t most = 1;
        for (int64_t c = 0; c < blocks; c++) {
            const int32_t *of = starts + c * in + row;
            most = maximum(most, of[count] - of[0]);
        }
        float *gathered = static_cast<float *>(malloc(most * sizeof(float)));
        if (!gathered) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            return;
        }
        for (int64_t c = 0; c < blocks; c++) {
            const int32_t *of = starts + c * in + row;
            const int64_t entries = of[count] - of[0];
            for (int64_t k = 0; k < entries; k++) gathered[k] = values[order[of[0] + k]];
            for (int64_t b = begin; b < end; b += LINEAR_TILE) {
                const Product p = {rows, gathered - of[0], nullptr, dy + b * out * LANES,
                                   dx + (b * in + row) * LANES, out * LANES, in * LANES, c == 0,
                                   false};
                multiply_tile(minimum(LINEAR_TILE, end - b), {of, of + 1, count, false}, p);
            }
        }
        free(gathered);
    });
    return failed;
}

// Columns and gradient of a row for NB batch blocks.
struct Dots {
    const int32_t *columns;
    const float *x;
    int64_t x_step;
    float *dvalues;
    bool first;
};

// M entries from k on; what is returned belongs there.
template <int NB, int M>
static SF_INLINE quad dot(const Dots &g, const v16 *dy, int64_t k) {
    v16 sum[4];
    SF_UNROLL
    for (int i = 0; i < 4; i++) sum[i] = splat(0.0f);
    SF_UNROLL
    for (int b = 0; b < NB; b++)
        SF_UNROLL
        for (int i = 0; i < M; i++) {
            const float *x = g.x + static_cast<int64_t>(g.columns[k + i]) * LANES;
            sum[i] += dy[b] * load(x + b * g.x_step);
        }
    quad result = sums(sum[0], sum[1], sum[2], sum[3]);
    if (!g.first) {
        quad before = {};
        memcpy(&before, g.dvalues + k, M * sizeof(float));
        result += before;
    }
    return result;
}

template <int NB>
static void dots(const Rows rows, const Dots g, const float *dy, int64_t dy_step) {
    for (int64_t row = 0; row < rows.count; row++) {
        int64_t k = rows.starts[row];
        const int64_t end = rows.ends[row];
        rows.fetch(row, g.columns, g.dvalues);
        v16 d[NB];
        SF_UNROLL
        for (int b = 0; b < NB; b++) d[b] = load(dy + b * dy_step + row * LANES);
        if (end - k >= 4) {
            // The last four overlap with the fours before: computed before those are
            // written, written after, they are the same numbers.
            const quad last = dot<NB, 4>(g, d, end - 4);
            for (; k + 4 < end; k += 4) {
                const quad four = dot<NB, 4>(g, d, k);
                memcpy(g.dvalues + k, &four, sizeof four);
            }
            memcpy(g.dvalues + end - 4, &last, sizeof last);
        } else {
            for (; k < end; k++) {
                const quad one = dot<NB, 1>(g, d, k);
                memcpy(g.dvalues + k, &one, sizeof(float));
            }
        }
    }
}

static void dots_tile(int64_t nb, const Rows &rows, const Dots &g, const float *dy,
                      int64_t dy_step) {
    switch (nb) {
        case 1: return dots<1>(rows, g, dy, dy_step);
        case 2: return dots<2>(rows, g, dy, dy_step);
        case 3: return dots<3>(rows, g, dy, dy_step);
        default: return dots<LINEAR_GRADIENT_TILE>(rows, g, dy, dy_step);
    }
}

static int linear_weight_gradient(int64_t out, int64_t in, int64_t nb, int64_t width,
                                  const int32_t *starts, const int32_t *columns, const float *x,
                                  const float *dy, float *dvalues, float *dbias,
                                  int64_t threads) {
    if (!out) return 0;
    const int64_t blocks = maximum(1, parts_of(in, width)), nnz = starts[(blocks + 1) * out - 1];
    const int64_t panels =
        minimum(out, maximum(parts_of(out, panel_rows(out, nnz)), threads > 1 ? 2 * threads : 1));
    parallel(threads, panels, [=](int64_t panel) {
        const int64_t row = split(starts, out, nnz, panel, panels);
        const int64_t count = split(starts, out, nnz, panel + 1, panels) - row;
        if (!nb && count) {
            const int64_t end = row + count < out ? starts[row + count] : nnz;
            for (int64_t k = starts[row]; k < end; k++) dvalues[k] = 0.0f;
        }
        for (int64_t c = 0; c < blocks; c++)
            for (int64_t b = 0; b < nb; b += LINEAR_GRADIENT_TILE) {
                const int32_t *of = starts + c * out + row;
                const Rows rows = {of, of + out, count, b == 0};
                const Dots g = {columns, x + b * in * LANES, in * LANES, dvalues, b == 0};
                dots_tile(minimum(LINEAR_GRADIENT_TILE, nb - b), rows, g,
                          dy + (b * out + row) * LANES, out * LANES);
            }
        if (dbias)
            for (int64_t r = row; r < row + count; r++) {
                v16 sum = splat(0.0f);
                for (int64_t b = 0; b < nb; b++) sum += load(dy + (b * out + r) * LANES);
                dbias[r] = total(sum);
            }
    });
    return 0;
}

}  // namespace SF_LEVEL
