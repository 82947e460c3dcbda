// How the work of a convolution is cut into bands and tiles.
#pragma once

#include "conv_axis.hpp"

namespace SF_LEVEL {

// Vectors of 16 that a tile keeps in registers, and columns of the widest tile.
#if defined(__AVX512F__)
constexpr int64_t TILE = 16, TILE_COLUMNS = 8;
constexpr bool NEAR_TILES = true;
#elif defined(__AVX__)
constexpr int64_t TILE = 7, TILE_COLUMNS = 7;
constexpr bool NEAR_TILES = false;
#else
constexpr int64_t TILE = 3, TILE_COLUMNS = 3;
constexpr bool NEAR_TILES = false;
#endif

static SF_INLINE Piece take(const float *p) { return *reinterpret_cast<const PieceAnywhere *>(p); }
static SF_INLINE void put(float *p, Piece v) { *reinterpret_cast<PieceAnywhere *>(p) = v; }
static SF_INLINE Piece all(float a) { return a - Piece{}; }  // not +: -0 stays -0

// Vectors of the source that a band may take: half of a common second-level cache. The
// weight gradient may take more if it would else add up its sums too often.
constexpr int64_t BAND = (480 << 10) / 64, LARGE_BAND = (1280 << 10) / 64;

// Bands are rectangles of the target whose sources stay in the second-level cache. Without
// a stride, taps read the source in place. With one, a band's sources are first packed:
// the positions of each residue side by side, with the zeros of the padding around.
//
// Where rows of the target have many taps, the plan is near: a band is one tile, and the
// source's channels are cut into parts. The sources in one part are packed, and stay in the
// first-level cache while their taps are added to the tile of one target channel after the
// other.
struct Plan {
    Axis h, w;
    int64_t channels, blocks;  // of the source
    int64_t parts, part;       // of the source's channels; channels of one
    int64_t positions;         // of the kernel, that starts of taps tell apart
    bool packed, near, by_block;  // by_block: the lines of a tile are batch blocks, not rows
    int64_t block_parts, row_parts, column_parts, items;
    int64_t pitch, area, plane, volume;  // vectors per line, residue, channel, part of a block
    int64_t columns;                     // most columns of a tile
};

// The part of the target that an item computes.
struct Band {
    int64_t block, blocks, row, rows, column, columns;
};

static Band band_of(const Plan &p, int64_t item) {
    const int64_t c = item % p.column_parts, r = item / p.column_parts % p.row_parts,
                  b = item / (p.column_parts * p.row_parts);
    const int64_t block = b * p.blocks / p.block_parts, row = r * p.h.count / p.row_parts,
                  column = c * p.w.count / p.column_parts;
    return {block,  (b + 1) * p.blocks / p.block_parts - block,
            row,    (r + 1) * p.h.count / p.row_parts - row,
            column, (c + 1) * p.w.count / p.column_parts - column};
}

// Cuts the target into bands that fit the cache: of whole lines, or if packed, with the
// least overlap of their sources.
static void choose_bands(Plan &p, int64_t budget) {
    const int64_t planes = p.channels * p.h.residues * p.w.residues;
    const int64_t high = p.h.high - p.h.low, wide = p.w.high - p.w.low;
    const int64_t most = maximum(1, p.w.count / 8);
    p.row_parts = p.h.count;
    p.column_parts = most;
    double best = 1e300;
    for (int64_t parts = 1; parts <= most; parts++) {
        const int64_t columns = parts_of(p.w.count, parts);
        const int64_t fit = budget / maximum(1, planes * (columns + wide)) - high;
        if (fit < 1) continue;
        const int64_t row_parts = parts_of(p.h.count, fit);
        const int64_t rows = parts_of(p.h.count, row_parts);
        const double cost = double((rows + high) * (columns + wide)) / double(rows * columns);
        if (cost >= best) continue;
        best = cost;
        p.row_parts = row_parts;
        p.column_parts = parts;
        if (!p.packed) break;  // whole lines
    }
}

static int64_t tile_begin(int64_t columns, int64_t most, int64_t tile) {
    return columns * tile / parts_of(columns, most);
}

// Kernels lack a source on one side of a tile, at fewer than EDGE columns: where tiles would
// lack more, they must be narrower.
constexpr int64_t EDGE = 5;
static bool one_sided(const Plan &p, const Band &band, int64_t most) {
    for (int64_t t = 0; t < parts_of(band.columns, most); t++) {
        const int64_t begin = tile_begin(band.columns, most, t);
        const int64_t size = tile_begin(band.columns, most, t + 1) - begin;
        for (int64_t k = 0; k < p.w.kernel; k++) {
            const Range range = inside(p.w, k, band.column + begin, size);
            if (range.begin >= range.end) continue;
            if (range.begin > 0 && range.end < size) return false;
            if (range.begin >= EDGE || size - range.end >= EDGE) return false;
        }
    }
    return true;
}

// What pays for a near plan: taps of a row and part, for storing the row's sums and loading
// them again; products of a packed vector, for packing it; and the share of the products of a
// whole tile that are not with the zeros of the padding.
constexpr double LEAST_TAPS = 12, LEAST_PRODUCTS = 5, LEAST_SHARE = 0.75;

// The share of the kernel positions of all targets that have a source.
static double share_inside(const Axis &axis) {
    int64_t sum = 0, all = 0;
    for (int64_t k = 0; k < axis.kernel; k++) {
        if (axis.use[k] < 0) continue;
        const Range range = inside(axis, k, 0, axis.count);
        sum += maximum(0, range.end - range.begin);
        all += axis.count;
    }
    return axis.stride > 1 ? 1 : double(sum) / double(maximum(1, all));
}

// Makes a plan near if that pays; target_rows: channels of the target, with so many taps each
// on average.
static void choose_near(Plan &p, int64_t target_rows, double taps) {
    if (!NEAR_TILES || !p.h.residues || !p.w.residues) return;
    if (p.h.count * p.w.count < TILE) return;  // its tiles are by block: see make_plan
    const int64_t column_parts = parts_of(p.w.count, TILE_COLUMNS);
    const int64_t columns = parts_of(p.w.count, column_parts);
    const int64_t row_parts = parts_of(p.h.count, TILE / columns);
    const int64_t rows = parts_of(p.h.count, row_parts);
    const int64_t plane = (columns + p.w.high - p.w.low) * p.w.residues *
                          (rows + p.h.high - p.h.low) * p.h.residues;
    // Two channels should fit, and most of a tile's registers be used.
    if (plane * 128 > sf_near || 4 * rows * columns < 3 * TILE) return;
    const int64_t parts = parts_of(p.channels, sf_near / (plane * 64));
    const double products = double(target_rows * rows * columns) * taps / double(p.channels);
    if (taps < LEAST_TAPS * double(parts) || products < LEAST_PRODUCTS * double(plane) ||
        share_inside(p.h) * share_inside(p.w) < LEAST_SHARE)
        return;
    p.part = parts_of(p.channels, parts);
    p.parts = parts_of(p.channels, p.part);
    p.positions = 1;
    p.near = true;
    p.row_parts = row_parts;
    p.column_parts = column_parts;
    p.packed = true;
}

// target_rows: channels of the target, with so many taps on average.
static Plan make_plan(const Axis &h, const Axis &w, int64_t channels, int64_t blocks,
                      int64_t target_rows, double taps, int64_t budget = BAND) {
    Plan p = {};
    p.h = h, p.w = w, p.channels = p.part = channels, p.blocks = p.block_parts = blocks;
    p.parts = 1, p.positions = h.kernel * w.kernel;
    p.packed = h.stride > 1 || w.stride > 1;
    if (!h.count || !w.count || !blocks) return p;
    choose_bands(p, p.packed ? BAND : budget);
    choose_near(p, target_rows, taps);
    p.pitch = w.source;
    p.area = w.source * h.source;
    if (p.packed) {
        p.pitch = parts_of(w.count, p.column_parts) + w.high - w.low;
        p.area = p.pitch * (parts_of(h.count, p.row_parts) + h.high - h.low);
    }
    p.plane = p.area * h.residues * w.residues;
    p.volume = p.plane * p.part;
    p.by_block = h.count * w.count < TILE;
    if (p.by_block) {
        const int64_t fit = maximum(1, BAND / maximum(1, p.volume));
        p.block_parts = parts_of(blocks, minimum(TILE / minimum(TILE_COLUMNS, w.count), fit));
    }
    p.items = p.block_parts * p.row_parts * p.column_parts;
    p.columns = TILE_COLUMNS;
    for (int64_t part = 0; part < p.column_parts && !p.packed; part++)
        while (!one_sided(p, band_of(p, part), p.columns)) p.columns--;
    return p;
}

// Vectors from the first source of a target to what a kernel position reads.
static int64_t place_of(const Plan &p, int64_t kh, int64_t kw) {
    return (p.h.use[kh] * p.w.residues + p.w.use[kw]) * p.area +
           (p.h.shift[kh] - (p.packed ? p.h.low : 0)) * p.pitch + p.w.shift[kw] -
           (p.packed ? p.w.low : 0);
}

}  // namespace SF_LEVEL
