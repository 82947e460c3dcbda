// Forward pass and input gradient: one kernel, as the input gradient is a convolution of
// the incoming gradient; with a stride, one for each residue of the input.
#pragma once

#include "conv_tiles.hpp"
#include "memory.hpp"

namespace SF_LEVEL {

struct Job {
    const int32_t *place;  // of each tap
    const float *values;   // likewise
    bool relu, streamed;
    const float *source;
    int64_t source_line, target_line, target_step;  // floats
    float *sums;                                    // of a tile, from part to part
    bool first, last;                               // of the parts
};
typedef void (*Compute)(const Job &, const Tiles &, const int32_t *starts, float bias,
                        float *target);

// Adds what the taps [begin, end) read, in columns [LOW, HIGH) of a tile.
template <int ROWS, int COLUMNS, int LOW, int HIGH>
static SF_INLINE void add_taps(Piece (&sum)[ROWS * COLUMNS * PIECES], const Job &job,
                               int64_t begin, int64_t end, const float *source) {
    for (int64_t k = begin; k < end; k++) {
        const Piece w = all(job.values[k]);
        const float *x = source + static_cast<int64_t>(job.place[k]) * LANES;
        SF_UNROLL
        for (int r = 0; r < ROWS; r++) {
            SF_UNROLL
            for (int i = LOW * PIECES; i < HIGH * PIECES; i++)
                sum[r * COLUMNS * PIECES + i] += w * take(x + r * job.source_line + i * PIECE);
        }
    }
}

template <int ROWS, int COLUMNS>
static void compute(const Job &job, const Tiles &group, const int32_t *starts, float bias,
                    float *plane) {
    constexpr int N = ROWS * COLUMNS * PIECES;
    for (int64_t t = 0; t < group.count; t++) {
        const float *source = job.source + group.tiles[t].source;
        float *target = plane + group.tiles[t].target;
        Piece sum[N];
        SF_UNROLL
        for (int i = 0; i < N; i++) sum[i] = job.first ? all(bias) : take(job.sums + i * PIECE);
        for (int64_t s = 0; s < group.segment_count; s++) {
            const Segment segment = group.segments[s];
            const int64_t begin = starts[segment.begin], end = starts[segment.end];
            if (begin == end) continue;
#define SF_CASE(C)                                                                     \
    case C:                                                                            \
        if constexpr (C < COLUMNS)                                                     \
            add_taps<ROWS, COLUMNS, C, COLUMNS>(sum, job, begin, end, source);         \
        break;                                                                         \
    case EDGE + C:                                                                     \
        if constexpr (C + 1 < COLUMNS)                                                 \
            add_taps<ROWS, COLUMNS, 0, COLUMNS - 1 - C>(sum, job, begin, end, source); \
        break;
            switch (segment.columns) {
                SF_CASE(0) SF_CASE(1) SF_CASE(2) SF_CASE(3) SF_CASE(4)
            }
#undef SF_CASE
        }
        if (!job.last) {
            SF_UNROLL
            for (int i = 0; i < N; i++) put(job.sums + i * PIECE, sum[i]);
            continue;
        }
        const bool streamed = job.streamed;  // else read again after each store
        if (job.relu) {
            SF_UNROLL
            for (int i = 0; i < N; i++) sum[i] = Piece{} > sum[i] ? Piece{} : sum[i];
        }
        SF_UNROLL
        for (int i = 0; i < N; i++) {
            float *to = target + i / (COLUMNS * PIECES) * job.target_line +
                        i / PIECES % COLUMNS * job.target_step + i % PIECES * PIECE;
            if (streamed) stream(to, sum[i]);
            else put(to, sum[i]);
        }
    }
}

template <int KIND = KINDS - 1>
static void find_kernels(Compute *kernels) {
    constexpr int R = KIND / TILE_COLUMNS + 1, C = KIND % TILE_COLUMNS + 1;
    if constexpr (R * C <= TILE) kernels[KIND] = compute<R, C>;
    if constexpr (KIND > 0) find_kernels<KIND - 1>(kernels);
}

// ---- The pass

struct Pass {
    Taps taps;
    const float *values, *bias, *source;  // values: in the order of the taps
    float *target;
    bool relu, streamed;
};

static void run_band(const Plan &p, const Compute *kernels, int64_t item, const Target &t,
                     const Pass &pass, Work &work, int64_t first, int64_t last) {
    const Band band = band_of(p, item);
    Ahead ahead = look_ahead(p, t, pass.source, item);
    if (pass.streamed) ahead.target = 0;
    const float *source = p.packed ? work.packed : pass.source + band.block * p.volume * LANES;
    make_tiles(p, band, t, work);
    const int64_t line = t.width * LANES, plane = t.height * line;
    Job job = {pass.taps.place, pass.values, pass.relu, pass.streamed, source,
               (p.by_block ? p.volume : p.pitch) * LANES,
               p.by_block ? t.channels * plane : line * p.h.step, p.w.step * LANES,
               nullptr, true, true};
    float *target = pass.target + band.block * t.channels * plane;
    for (int64_t part = 0; part < p.parts; part++) {
        if (p.packed) pack(p, band, part, pass.source, work.packed);
        Next next = next_part(p, item, part, pass.source, last - first);
        job.first = !part;
        job.last = part == p.parts - 1;
        for (int64_t channel = first; channel < last; channel++) {
            ask_for(ahead, channel - first, last - first,
                    target + (channel + 1) * plane + band.row * line);
            ask_for(next);
            job.sums = work.sums + (channel - first) * TILE * LANES;
            for (int64_t g = 0; g < work.group_count; g++)
                kernels[work.groups[g].kind](
                    job, work.groups[g],
                    pass.taps.starts + (part * t.channels + channel) * p.positions,
                    pass.bias ? pass.bias[channel] : 0.0f, target + channel * plane);
        }
    }
}

static int run_pass(const Plan &p, const Target &t, const Taps &taps, const float *values,
                    const float *bias, bool relu, const float *source, float *target,
                    int64_t threads) {
    if (!t.channels || !p.items) return 0;
    const int64_t first_tap = taps.starts[0],
                  last_tap = taps.starts[t.channels * p.parts * p.positions];
    const int64_t splits = minimum(t.channels, parts_of(threads, p.items));
    const int64_t chunks = minimum(p.items, threads > 1 ? 4 * threads : 1);
    const int64_t most = parts_of(t.channels, splits);
    const Rooms rooms(threads, chunks * splits, work_bytes(p, most, nullptr, nullptr));
    float *sorted = static_cast<float *>(malloc((last_tap - first_tap + 1) * sizeof(float)));
    if (!rooms.memory || !sorted) {
        rooms.close();
        free(sorted);
        return 1;
    }
    for (int64_t k = first_tap; k < last_tap; k++) sorted[k - first_tap] = values[taps.order[k]];
    const bool past = streamed(target, p.blocks * t.channels * t.height * t.width);
    const Pass pass = {taps, sorted - first_tap, bias, source, target, relu, past};
    Compute kernels[KINDS];
    find_kernels(kernels);
    parallel(threads, chunks * splits, [&](int64_t part) {
        char *room = rooms.take_one();
        Work work;
        work_bytes(p, most, &work, room);
        const int64_t chunk = part / splits, of = part % splits;
        for (int64_t i = p.items * chunk / chunks; i < p.items * (chunk + 1) / chunks; i++)
            run_band(p, kernels, i, t, pass, work, t.channels * of / splits,
                     t.channels * (of + 1) / splits);
        rooms.leave(room);
        if (past) end_stream();
    });
    free(sorted);
    rooms.close();
    return 0;
}

static int conv_forward(const int64_t *shape, const int32_t *starts, const int32_t *place,
                        const int32_t *order, const float *values, const float *bias,
                        const float *x, float *y, int64_t relu, int64_t threads) {
    const Shape s = *reinterpret_cast<const Shape *>(shape);
    if (!s.blocks) return 0;
    return run_pass(forward_plan(s), {s.out, s.h.out, s.w.out}, {starts, place, order}, values,
                    bias, relu, x, y, threads);
}

static int conv_input_gradient(const int64_t *shape, const int32_t *starts, const int32_t *place,
                               const int32_t *order, const float *values, const float *dy,
                               float *dx, int64_t threads) {
    const Shape s = *reinterpret_cast<const Shape *>(shape);
    int failed = 0;
    for (int64_t i = 0; i < s.h.stride && s.blocks; i++)
        for (int64_t j = 0; j < s.w.stride && !failed; j++) {
            const Plan p = backward_plan(s, i, j);
            failed = run_pass(p, {s.in, s.h.in, s.w.in}, {starts, place, order}, values, nullptr,
                              false, dy, dx, threads);
            starts += s.in * p.parts * p.positions;
        }
    return failed;
}

}  // namespace SF_LEVEL
