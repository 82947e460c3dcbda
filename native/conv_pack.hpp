// The sources of a band side by side, with the zeros of the padding around.
#pragma once

#include "conv_plan.hpp"

namespace SF_LEVEL {

static SF_INLINE void fill_zero(float *to, int64_t vectors) {
    for (int64_t i = 0; i < vectors * PIECES; i++) put(to + i * PIECE, Piece{});
}

// Of a packed line, the vectors [begin, end) that have a source, the first at `from`.
struct Stretch {
    int64_t begin, end, from;
};
static Stretch stretch_of(const Axis &w, int64_t residue, int64_t first, int64_t size) {
    const int64_t begin = minimum(size, maximum(0, -first));
    const int64_t last = floor_divide(w.source - 1 - residue, w.stride) + 1 - first;
    return {begin, maximum(begin, minimum(size, last)), (first + begin) * w.stride + residue};
}

// Packs one line of each residue of its columns, area vectors apart.
static SF_INLINE void pack_line(const Plan &p, const Stretch *stretches, int64_t columns,
                                const float *from, float *to) {
    const int64_t step = p.w.stride * LANES;
    for (int64_t i = 0; i < p.w.residues; i++, to += p.area * LANES) {
        const Stretch s = from ? stretches[i] : Stretch{columns, columns, 0};
        fill_zero(to, s.begin);
        const float *x = from ? from + s.from * LANES : from;
        for (int64_t j = s.begin; j < s.end; j++, x += step) {
            SF_UNROLL
            for (int k = 0; k < PIECES; k++) put(to + j * LANES + k * PIECE, take(x + k * PIECE));
        }
        fill_zero(to + s.end * LANES, columns - s.end);
    }
}

static void pack(const Plan &p, const Band &band, int64_t part, const float *x, float *to) {
    const int64_t first = part * p.part, count = minimum(p.part, p.channels - first);
    const int64_t rows = band.rows + p.h.high - p.h.low;
    const int64_t columns = band.columns + p.w.high - p.w.low;
    const int64_t row = band.row + p.h.low, line = p.w.source * LANES;
    Stretch stretches[MAX_KERNEL];
    for (int64_t i = 0; i < p.w.residues; i++)
        stretches[i] = stretch_of(p.w, p.w.residue[i], band.column + p.w.low, columns);
    for (int64_t b = 0; b < band.blocks; b++)
        for (int64_t c = 0; c < count; c++, to += p.plane * LANES) {
            const float *image =
                x + ((band.block + b) * p.channels + first + c) * p.h.source * line;
            float *residue = to;
            for (int64_t i = 0; i < p.h.residues; i++, residue += p.w.residues * p.area * LANES)
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = (row + r) * p.h.stride + p.h.residue[i];
                    const float *from = at < 0 || at >= p.h.source ? nullptr : image + at * line;
                    pack_line(p, stretches, columns, from, residue + r * p.pitch * LANES);
                }
        }
}

}  // namespace SF_LEVEL
