// The gradient by the non-zero weights and by the bias.
#pragma once

#include "conv_tiles.hpp"

namespace SF_LEVEL {

struct Sums {
    const int32_t *place;
    const float *source;
    int64_t source_line, target_line;  // floats
    float *to, *bias;                  // (taps, 16), (16)
};
typedef void (*Summing)(const Sums &, const Tiles &, const int32_t *starts,
                        const float *gradient);

// Bytes of the sums of 16 that are kept over all bands; with a near plan, of so many output
// channels at a time.
constexpr int64_t KEEP = 1 << 20, KEEP_MOST = 8 << 20;
// Sums that a tap's products are dealt to, so that none waits for the last.
constexpr int64_t CHAINS = PIECES > 1 ? PIECES : 2;

// Adds to each tap's 16 sums the products of the gradient with what the tap reads.
template <int ROWS, int COLUMNS, int LOW, int HIGH>
static SF_INLINE void add_products(const Piece (&d)[ROWS * COLUMNS * PIECES], const Sums &job,
                                   int64_t begin, int64_t end, const float *source) {
    for (int64_t k = begin; k < end; k++) {
        const float *x = source + static_cast<int64_t>(job.place[k]) * LANES;
        float *to = job.to + k * LANES;
        Piece sum[CHAINS];
        SF_UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = i < PIECES ? take(to + i * PIECE) : Piece{};
        SF_UNROLL
        for (int r = 0; r < ROWS; r++) {
            SF_UNROLL
            for (int i = LOW * PIECES; i < HIGH * PIECES; i++)
                sum[i % CHAINS] +=
                    d[r * COLUMNS * PIECES + i] * take(x + r * job.source_line + i * PIECE);
        }
        SF_UNROLL
        for (int i = PIECES; i < CHAINS; i++) sum[i % PIECES] += sum[i];
        SF_UNROLL
        for (int i = 0; i < PIECES; i++) put(to + i * PIECE, sum[i]);
    }
}

template <int ROWS, int COLUMNS>
static void sum_products(const Sums &job, const Tiles &group, const int32_t *starts,
                         const float *plane) {
    constexpr int N = ROWS * COLUMNS * PIECES;
    Piece own[PIECES];
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) own[i] = take(job.bias + i * PIECE);
    for (int64_t t = 0; t < group.count; t++) {
        const float *source = job.source + group.tiles[t].source;
        const float *gradient = plane + group.tiles[t].target;
        Piece d[N];
        SF_UNROLL
        for (int i = 0; i < N; i++) {
            d[i] = take(gradient + i / (COLUMNS * PIECES) * job.target_line +
                        i % (COLUMNS * PIECES) * PIECE);
            own[i % PIECES] += d[i];
        }
        for (int64_t s = 0; s < group.segment_count; s++) {
            const Segment segment = group.segments[s];
            const int64_t begin = starts[segment.begin], end = starts[segment.end];
            if (begin == end) continue;
#define SF_CASE(C)                                                                       \
    case C:                                                                              \
        if constexpr (C < COLUMNS)                                                       \
            add_products<ROWS, COLUMNS, C, COLUMNS>(d, job, begin, end, source);         \
        break;                                                                           \
    case EDGE + C:                                                                       \
        if constexpr (C + 1 < COLUMNS)                                                   \
            add_products<ROWS, COLUMNS, 0, COLUMNS - 1 - C>(d, job, begin, end, source); \
        break;
            switch (segment.columns) {
                SF_CASE(0) SF_CASE(1) SF_CASE(2) SF_CASE(3) SF_CASE(4)
            }
#undef SF_CASE
        }
    }
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) put(job.bias + i * PIECE, own[i]);
}

template <int KIND = KINDS - 1>
static void find_kernels(Summing *kernels) {
    constexpr int R = KIND / TILE_COLUMNS + 1, C = KIND % TILE_COLUMNS + 1;
    if constexpr (R * C <= TILE) kernels[KIND] = sum_products<R, C>;
    if constexpr (KIND > 0) find_kernels<KIND - 1>(kernels);
}

static void add_up(const float *kept, int64_t taps, float *dvalues) {
    int64_t k = 0;
    for (; k + 4 <= taps; k += 4, kept += 4 * LANES) {
        const quad four = sums(load(kept), load(kept + LANES), load(kept + 2 * LANES),
                               load(kept + 3 * LANES));
        for (int i = 0; i < 4; i++) dvalues[k + i] += four[i];
    }
    for (; k < taps; k++, kept += LANES) dvalues[k] += total(load(kept));
}

struct Gradient {
    Taps taps;
    const float *x, *dy;
};

// What one pass works on, and how: the taps' 16 sums are kept until the last band, or if
// that takes too much memory, added up after each.
struct Sweep {
    const Plan &plan;
    const Target &target;
    const Gradient &g;
    const Summing *kernels;
    bool keep;

    const int32_t *starts(int64_t part, int64_t channel) const {
        return g.taps.starts + (part * target.channels + channel) * plan.positions;
    }
    int64_t tap(int64_t part, int64_t channel) const { return *starts(part, channel); }
    // Biases and taps of channels [first, last).
    int64_t length(int64_t first, int64_t last) const {
        int64_t sum = last - first;
        for (int64_t part = 0; part < plan.parts; part++) sum += tap(part, last) - tap(part, first);
        return sum;
    }
};

// A part's output channels [first, last), its room for sums of 16, those of biases first, and
// its results.
struct Share {
    int64_t first, last;
    float *room, *dvalues, *dbias;
};

static SF_INLINE void ask_for_tile(const Band &band, const Target &t, const float *plane) {
    for (int64_t y = band.row; y < band.row + band.rows; y++)
        for (int64_t x = band.column; x < band.column + band.columns; x++)
            __builtin_prefetch(plane + (y * t.width + x) * LANES, 0, 3);
}

static void sum_band(const Sweep &sweep, int64_t item, const Share &share, Work &work) {
    const Plan &p = sweep.plan;
    const Target &t = sweep.target;
    const Gradient &g = sweep.g;
    const Band band = band_of(p, item);
    const Ahead ahead = look_ahead(p, t, g.x, item);
    const float *source = p.packed ? work.packed : g.x + band.block * p.volume * LANES;
    make_tiles(p, band, t, work);
    const int64_t line = t.width * LANES, plane = t.height * line;
    float *to = share.room + (sweep.keep ? share.last - share.first : 1) * LANES;
    for (int64_t part = 0; part < p.parts; part++) {
        if (p.packed) pack(p, band, part, g.x, work.packed);
        Next next = next_part(p, item, part, g.x, share.last - share.first);
        int64_t tap = sweep.tap(part, share.first);  // the one whose sums are at `to`
        for (int64_t o = share.first; o < share.last; o++) {
            const float *gradient = g.dy + (band.block * t.channels + o) * plane;
            ask_for(ahead, o - share.first, share.last - share.first,
                    gradient + plane + band.row * line);
            ask_for(next);
            if (p.near && !part) ask_for_tile(band, t, gradient + plane);
            const int64_t end = sweep.tap(part, o + 1);
            float counted[LANES] = {}, *bias = share.room;
            if (!sweep.keep) memset(bias, 0, (end - tap + 1) * LANES * sizeof(float));
            else bias = part ? counted : bias + (o - share.first) * LANES;
            const Sums job = {g.taps.place, source, (p.by_block ? p.volume : p.pitch) * LANES,
                              p.by_block ? t.channels * plane : line, to - tap * LANES, bias};
            for (int64_t i = 0; i < work.group_count; i++)
                sweep.kernels[work.groups[i].kind](job, work.groups[i], sweep.starts(part, o),
                                                   gradient);
            if (sweep.keep) continue;
            add_up(to, end - tap, share.dvalues + tap);
            share.dbias[o] += total(load(bias));
            tap = end;
        }
        to += (sweep.tap(part, share.last) - tap) * LANES;
    }
}

static void sum_bands(const Sweep &sweep, int64_t first, int64_t last, const Share &share,
                      Work &work) {
    const int64_t length = sweep.length(share.first, share.last);
    if (sweep.keep) memset(share.room, 0, length * LANES * sizeof(float));
    for (int64_t item = first; item < last; item++) sum_band(sweep, item, share, work);
    if (!sweep.keep) return;
    const float *of = share.room;
    for (int64_t o = share.first; o < share.last; o++, of += LANES)
        share.dbias[o] += total(load(of));
    for (int64_t part = 0; part < sweep.plan.parts; part++) {
        const int64_t tap = sweep.tap(part, share.first),
                      taps = sweep.tap(part, share.last) - tap;
        add_up(of, taps, share.dvalues + tap);
        of += taps * LANES;
    }
}

// Bands are dealt to chunks, whose number depends on the shapes alone; each has results of
// its own, and these are added in order.
static int sum_all(const Sweep &sweep, float *dvalues, float *dbias, int64_t threads) {
    const Plan &p = sweep.plan;
    const int64_t channels = sweep.target.channels, length = sweep.length(0, channels);
    const int64_t chunks = maximum(1, minimum(minimum(p.items, 16), (1 << 24) / length));
    const int64_t kept = sweep.keep ? parts_of(length * 64, KEEP_MOST) : 1;
    const int64_t splits = minimum(channels, maximum(kept, parts_of(threads, chunks)));
    const bool alone = threads <= 1;  // then one result serves all chunks
    const auto begin = [&](int64_t of) { return channels * of / splits; };
    int64_t most = 0;  // sums of 16 that are kept at a time
    for (int64_t o = 0; o < channels && !sweep.keep; o++)
        most = maximum(most, sweep.length(o, o + 1));
    for (int64_t of = 0; of < splits && sweep.keep; of++)
        most = maximum(most, sweep.length(begin(of), begin(of + 1)));
    const int64_t room = most * 64, bytes = room + work_bytes(p, 0, nullptr, nullptr);
    const int64_t results = alone ? 1 : chunks;
    const Rooms rooms(threads, chunks * splits, bytes);
    float *partial = static_cast<float *>(calloc(results * length, sizeof(float)));
    const bool failed = !rooms.memory || !partial;
    const auto add = [&](float *of, int64_t first, int64_t last) {
        for (int64_t part = 0; part < p.parts; part++)
            for (int64_t k = sweep.tap(part, first); k < sweep.tap(part, last); k++) {
                dvalues[sweep.g.taps.order[k]] += of[k];
                of[k] = 0;
            }
        for (int64_t o = first; o < last; o++) {
            dbias[o] += of[length - channels + o];
            of[length - channels + o] = 0;
        }
    };
    parallel(threads, failed ? 0 : chunks * splits, [&](int64_t part) {
        const int64_t chunk = part / splits, of = part % splits;
        char *mine = rooms.take_one();
        float *result = partial + (alone ? 0 : chunk) * length;
        Work work;
        work_bytes(p, 0, &work, mine + room);
        const Share share = {begin(of), begin(of + 1), reinterpret_cast<float *>(mine), result,
                             result + length - channels};
        sum_bands(sweep, p.items * chunk / chunks, p.items * (chunk + 1) / chunks, share, work);
        rooms.leave(mine);
        if (alone) add(result, share.first, share.last);
    });
    for (int64_t chunk = 0; chunk < chunks && !failed && !alone; chunk++)
        add(partial + chunk * length, 0, channels);
    free(partial);
    rooms.close();
    return failed;
}

static int conv_weight_gradient(const int64_t *shape, const int32_t *starts,
                                const int32_t *place, const int32_t *order, const float *x,
                                const float *dy, float *dvalues, float *dbias,
                                int64_t threads) {
    const Shape s = *reinterpret_cast<const Shape *>(shape);
    for (int64_t k = 0; k < s.nnz; k++) dvalues[k] = 0;
    for (int64_t o = 0; o < s.out; o++) dbias[o] = 0;
    if (!s.blocks || !s.out) return 0;
    const bool fits = (s.nnz + s.out) * 64 <= KEEP;
    const Plan p = forward_plan(s, fits ? BAND : LARGE_BAND);
    const bool keep = fits || p.near;
    const Target t = {s.out, s.h.out, s.w.out};
    const Gradient g = {{starts, place, order}, x, dy};
    Summing kernels[KINDS];
    find_kernels(kernels);
    return sum_all({p, t, g, kernels, keep}, dvalues, dbias, threads);
}

}  // namespace SF_LEVEL
