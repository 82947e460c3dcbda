// The non-zeros in the order in which the passes of a convolution take them.
#pragma once

#include "conv_plan.hpp"

namespace SF_LEVEL {

// The non-zeros by part of the source's channels, then row of the target, then, but for near
// plans, kernel column and kernel row, then channel; those of one part, row and kernel
// position begin at starts.
struct Taps {
    const int32_t *starts;  // (parts * rows * positions + 1)
    const int32_t *place;   // vectors from the first source of a target
    const int32_t *order;   // the non-zero's place in the caller's arrays
};

// Sorts by counting; entry(k, row) -> the group of a non-zero and its place.
struct Entry {
    int64_t group, place;
};
template <class Get>
static void sort_taps(int64_t rows, const int32_t *pointers, int64_t groups, int32_t *starts,
                      int32_t *place, int32_t *order, Get entry) {
    memset(starts, 0, (groups + 1) * sizeof(int32_t));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = pointers[row]; k < pointers[row + 1]; k++)
            starts[entry(k, row).group + 1]++;
    for (int64_t g = 0; g < groups; g++) starts[g + 1] += starts[g];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = pointers[row]; k < pointers[row + 1]; k++) {
            const Entry e = entry(k, row);
            const int32_t at = starts[e.group]++;
            place[at] = static_cast<int32_t>(e.place);
            order[at] = static_cast<int32_t>(k);
        }
    // Each start has moved on to the next one's place.
    memmove(starts + 1, starts, groups * sizeof(int32_t));
    starts[0] = 0;
}

// Of a kernel position: its group in the first row of the first part, its place without a
// channel, the distances of groups and of channels, and the channels of a part.
struct Position {
    int64_t group, place, positions, plane;
    uint32_t part;
};

static Plan forward_plan(const Shape &s, int64_t budget = BAND) {
    const double taps = s.groups == 1 ? double(s.nnz) / double(s.out) : 0;
    return make_plan(forward_axis(s.h), forward_axis(s.w), s.in, s.blocks, s.out, taps, budget);
}

// The input positions (i, j) plus multiples of the stride.
static Plan backward_plan(const Shape &s, int64_t i, int64_t j) {
    const double taps =
        s.groups == 1 ? double(s.nnz) / double(s.in * s.h.stride * s.w.stride) : 0;
    return make_plan(backward_axis(s.h, i), backward_axis(s.w, j), s.out, s.blocks, s.in, taps);
}

// Taps by a table of the kernel positions; rows: output channels, else input channels.
static void sort_by(const Shape &s, const Position *of, bool outputs, int64_t groups,
                    const int32_t *pointers, const int32_t *columns, int32_t *starts,
                    int32_t *place, int32_t *order) {
    const uint32_t kernel = static_cast<uint32_t>(s.h.kernel * s.w.kernel);
    const int64_t per_group = s.in / s.groups, group = s.out / s.groups,
                  rows = outputs ? s.out : s.in;
    sort_taps(s.out, pointers, groups, starts, place, order, [=](int64_t k, int64_t out) {
        const uint32_t column = static_cast<uint32_t>(columns[k]), c = column / kernel;
        const Position &at = of[column - c * kernel];
        const uint32_t in = static_cast<uint32_t>(out / group * per_group + c);
        const uint32_t row = outputs ? static_cast<uint32_t>(out) : in,
                       source = outputs ? in : static_cast<uint32_t>(out);
        const uint32_t part = source / at.part;
        return Entry{at.group + (part * rows + row) * at.positions,
                     at.place + (source - part * at.part) * at.plane};
    });
}

// The plan of the forward pass and the weight gradient, or that of the input gradient at one
// residue of the stride.
static Plan plan_of(const Shape &s, int64_t backward, int64_t residue) {
    return backward ? backward_plan(s, residue / s.w.stride, residue % s.w.stride)
                    : forward_plan(s);
}

static int conv_starts(const int64_t *shape, int64_t backward, int64_t *entries) {
    const Shape s = *reinterpret_cast<const Shape *>(shape);
    *entries = 1;
    for (int64_t i = 0; i < (backward ? s.h.stride * s.w.stride : 1); i++) {
        const Plan p = plan_of(s, backward, i);
        *entries += (backward ? s.in : s.out) * p.parts * p.positions;
    }
    return 0;
}

// The taps of the forward pass and the weight gradient; of the input gradient, one residue
// of the stride after the other.
static int conv_taps(const int64_t *shape, int64_t backward, const int32_t *pointers,
                     const int32_t *columns, int32_t *starts, int32_t *place, int32_t *order) {
    const Shape s = *reinterpret_cast<const Shape *>(shape);
    const int64_t kernel = s.h.kernel * s.w.kernel;
    Position of[MAX_KERNEL * MAX_KERNEL];
    for (int64_t i = 0; i < kernel; i++) of[i] = {0, 0, 0, 0, 1};
    int64_t groups = 0;
    for (int64_t i = 0; i < (backward ? s.h.stride * s.w.stride : 1); i++) {
        const Plan p = plan_of(s, backward, i);
        for (int64_t kh = 0; kh < s.h.kernel; kh++)
            for (int64_t kw = 0; kw < s.w.kernel; kw++)
                if (p.h.use[kh] >= 0 && p.w.use[kw] >= 0)
                    of[kh * s.w.kernel + kw] = {
                        groups + (p.near ? 0 : kw * s.h.kernel + kh), place_of(p, kh, kw),
                        p.positions, p.plane, static_cast<uint32_t>(p.part)};
        groups += (backward ? s.in : s.out) * p.parts * p.positions;
    }
    sort_by(s, of, !backward, groups, pointers, columns, starts, place, order);
    return 0;
}

}  // namespace SF_LEVEL
