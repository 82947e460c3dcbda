// From a band to tiles: what the kernels of all passes walk over.
#pragma once

#include "conv_pack.hpp"
#include "conv_taps.hpp"

namespace SF_LEVEL {

// Groups of taps [begin, end) of a row, for columns of a tile: columns < EDGE: all but the
// first of that number; else all but the last columns - EDGE + 1.
struct Segment {
    int32_t begin, end, columns;
};
struct Tile {
    int64_t source, target;  // floats
};
// Tiles of one size that lack the same sources.
struct Tiles {
    int64_t kind;  // of the kernel, see kind_of
    const Segment *segments;
    const Tile *tiles;
    int64_t segment_count, count;
};

constexpr int64_t KINDS = TILE * TILE_COLUMNS;
static int64_t kind_of(int64_t rows, int64_t columns) {
    return (rows - 1) * TILE_COLUMNS + columns - 1;
}

// The tensor (blocks, channels, height, width) that tiles cover.
struct Target {
    int64_t channels, height, width;
};

// What an item's thread works with; room for any band of the plan.
struct Work {
    float *packed;
    Tiles *groups;
    Segment *segments;
    Tile *tiles;
    float *sums;  // of a tile of each target channel, from part to part
    int64_t group_count;
    Band band;  // that the tiles are of
};

// channels: whose sums are kept from part to part.
static int64_t work_bytes(const Plan &p, int64_t channels, Work *work, char *memory) {
    const int64_t blocks = parts_of(p.blocks, p.block_parts),
                  rows = parts_of(p.h.count, p.row_parts),
                  columns = parts_of(p.w.count, p.column_parts);
    const int64_t groups = blocks * rows * parts_of(columns, p.columns);
    const int64_t sums = p.parts > 1 ? channels * TILE * 64 : 0;
    const int64_t packed = p.packed ? blocks * p.volume * 64 : 0;
    const int64_t at_tiles = sums + packed + groups * sizeof(Tiles),
                  at_segments = at_tiles + groups * sizeof(Tile);
    if (work)
        *work = {reinterpret_cast<float *>(memory + sums),
                 reinterpret_cast<Tiles *>(memory + sums + packed),
                 reinterpret_cast<Segment *>(memory + at_segments),
                 reinterpret_cast<Tile *>(memory + at_tiles),
                 reinterpret_cast<float *>(memory), 0, {}};
    return (at_segments + groups * p.w.kernel * (int64_t)sizeof(Segment) + 63) / 64 * 64;
}

// The segments of tiles at these columns, where kernel rows `rows` have a source.
static int64_t make_segments(const Plan &p, int64_t column, int64_t size, Range rows,
                             Segment *to) {
    const int64_t high = p.h.kernel;
    if (p.packed) {
        *to = {0, static_cast<int32_t>(p.positions), 0};
        return 1;
    }
    int64_t n = 0;  // neighbours that lack the same are one
    for (int64_t k = 0; k < p.w.kernel; k++) {
        const Range range = inside(p.w, k, column, size);
        if (range.begin >= range.end || rows.begin >= rows.end) continue;
        const int64_t columns = range.end < size ? EDGE - 1 + size - range.end : range.begin;
        const Segment segment = {static_cast<int32_t>(k * high + rows.begin),
                                 static_cast<int32_t>(k * high + rows.end),
                                 static_cast<int32_t>(columns)};
        if (n && to[n - 1].columns == columns && to[n - 1].end == segment.begin)
            to[n - 1].end = segment.end;
        else to[n++] = segment;
    }
    return n;
}

// Adds the tiles of rows [row, row + rows) of the band, which lack the same sources above
// and below; by block, there is one row.
static void add_tiles(const Plan &p, const Band &band, const Target &t, int64_t row,
                      int64_t rows, Work &work, Tile *&tile, Segment *&segment) {
    const int64_t count = parts_of(band.columns, p.columns);
    const Range kernel_rows =
        p.packed ? Range{0, p.h.kernel} : positions(p.h, band.row + row);
    for (int64_t i = 0; i < count; i++) {
        const int64_t column = tile_begin(band.columns, p.columns, i);
        const int64_t columns = tile_begin(band.columns, p.columns, i + 1) - column;
        const int64_t most = TILE / columns, lines = p.by_block ? band.blocks : rows;
        const int64_t n = make_segments(p, band.column + column, columns, kernel_rows, segment);
        const int64_t parts = parts_of(lines, most);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t line = lines * part / parts,
                          size = lines * (part + 1) / parts - line;
            const int64_t r = row + (p.by_block ? 0 : line), b = p.by_block ? line : 0;
            const int64_t y = p.h.start + (band.row + r) * p.h.step,
                          x = p.w.start + (band.column + column) * p.w.step;
            const int64_t source = p.packed ? r * p.pitch + column
                                            : (band.row + r) * p.pitch + band.column + column;
            *tile = {(b * p.volume + source) * LANES,
                     ((b * t.channels * t.height + y) * t.width + x) * LANES};
            const int64_t kind = kind_of(size, columns);
            Tiles *last = work.group_count ? &work.groups[work.group_count - 1] : nullptr;
            const bool same = last && last->kind == kind && last->segment_count == n &&
                              !memcmp(last->segments, segment, n * sizeof(Segment));
            if (same) last->count++;
            else work.groups[work.group_count++] = {kind, segment, tile, n, 1};
            tile++;
        }
        segment += n;
    }
}

static void make_tiles(const Plan &p, const Band &band, const Target &t, Work &work) {
    const Band &old = work.band;
    const bool same = old.blocks == band.blocks && old.row == band.row && old.rows == band.rows &&
                      old.column == band.column && old.columns == band.columns;
    work.band = band;
    if (same) return;
    Tile *tile = work.tiles;
    Segment *segment = work.segments;
    work.group_count = 0;
    for (int64_t row = 0, end; row < band.rows; row = end) {
        end = row + 1;
        const Range range = positions(p.h, band.row + row);
        while (!p.by_block && end < band.rows) {
            const Range other = positions(p.h, band.row + end);
            if (!p.packed && (other.begin != range.begin || other.end != range.end)) break;
            end++;
        }
        add_tiles(p, band, t, row, end - row, work, tile, segment);
    }
}

// Passes that touch fewer bytes find them in the caches.
constexpr int64_t FAR = 1 << 22;

// What comes next is asked for in time, a share with each channel: the caches' own
// prediction sees only the jumps from channel to channel.
struct Ahead {
    const float *source;  // of the first channel
    int64_t channels, plane, vectors, target;
};

// The lines of the source that the next band needs and this one did not, and the target's
// lines of the next channel.
static Ahead look_ahead(const Plan &p, const Target &t, const float *source, int64_t item) {
    const int64_t bytes = p.blocks * (p.volume + t.channels * t.height * t.width) * 64;
    const Band band = band_of(p, item);
    Ahead ahead = {nullptr, 0, 0, 0, 0};
    if (p.packed || p.column_parts > 1 || bytes < FAR) return ahead;
    ahead.target = p.h.step == 1 ? minimum(128, band.rows * t.width) : 0;
    if (item + 1 >= p.items) return ahead;
    const Band next = band_of(p, item + 1);
    int64_t begin = maximum(0, next.row + p.h.low);
    if (next.block == band.block) begin = maximum(begin, band.row + band.rows + p.h.high);
    const int64_t end = minimum(p.h.source, next.row + next.rows + p.h.high);
    ahead.source = source + (next.block * p.volume + begin * p.pitch) * LANES;
    ahead.channels = p.channels;
    ahead.plane = p.plane * LANES;
    ahead.vectors = maximum(0, end - begin) * p.pitch;
    return ahead;
}

// What a near plan packs next, of this band or of the next: lines of a rectangle of channels,
// of which some are asked for with each target channel.
struct Next {
    const float *line;
    int64_t lines, each, row, rows, pitch, step, columns;  // pitch, step: to the next; floats
};

static Next next_part(const Plan &p, int64_t item, int64_t part, const float *source,
                      int64_t channels) {
    const bool same = part + 1 < p.parts;
    if (!p.near || (!same && item + 1 == p.items)) return {source, 0, 0, 0, 0, 0, 0, 0};
    const Band band = band_of(p, same ? item : item + 1);
    const int64_t first = (same ? part + 1 : 0) * p.part,
                  top = maximum(0, (band.row + p.h.low) * p.h.stride),
                  left = maximum(0, (band.column + p.w.low) * p.w.stride),
                  bottom = (band.row + band.rows + p.h.high) * p.h.stride,
                  right = (band.column + band.columns + p.w.high) * p.w.stride;
    const int64_t rows = maximum(0, minimum(p.h.source, bottom) - top),
                  columns = minimum(p.w.source, right) - left;
    const int64_t pitch = p.w.source * LANES, plane = p.h.source * pitch,
                  lines = rows * minimum(p.part, p.channels - first);
    return {source + (band.block * p.channels + first) * plane + top * pitch + left * LANES,
            lines, parts_of(lines, channels), 0, rows, pitch, plane - (rows - 1) * pitch, columns};
}

static SF_INLINE void ask_for(Next &next) {
    const int64_t count = minimum(next.each, next.lines);
    next.lines -= count;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t x = 0; x < next.columns; x++)
            __builtin_prefetch(next.line + x * LANES, 0, 2);
        const bool last = ++next.row == next.rows;
        next.line += last ? next.step : next.pitch;
        next.row = last ? 0 : next.row;
    }
}

// The share of one of `channels`; target: where that channel's successor's lines begin.
static SF_INLINE void ask_for(const Ahead &ahead, int64_t channel, int64_t channels,
                              const float *target) {
    for (int64_t i = 0; i < ahead.target; i++) __builtin_prefetch(target + i * LANES, 0, 3);
    if (!ahead.channels) return;
    const int64_t end = ahead.channels * (channel + 1) / channels;
    for (int64_t c = ahead.channels * channel / channels; c < end; c++)
        for (int64_t i = 0; i < ahead.vectors; i++)
            __builtin_prefetch(ahead.source + c * ahead.plane + i * LANES, 0, 2);
}

}  // namespace SF_LEVEL
