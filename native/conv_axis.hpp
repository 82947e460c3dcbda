// Where the taps of a convolution read, along one axis.
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

constexpr int64_t MAX_KERNEL = 15;

// A convolution along one axis, and in all; as the caller passes them.
struct Line {
    int64_t in, out, kernel, stride, padding, dilation;
};
struct Shape {
    int64_t blocks, in, out, groups, nnz;
    Line h, w;
};

// Target position start + j * step, 0 <= j < count, reads for kernel position k the source
// position (j + shift[k]) * stride + residue[use[k]], if there is one.
struct Axis {
    int64_t source, count, start, step, stride, kernel;
    int64_t residues, residue[MAX_KERNEL];
    int64_t use[MAX_KERNEL], shift[MAX_KERNEL];  // use -1: never read
    int64_t low, high;                           // least and largest shift
};

static int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static void set_position(Axis &axis, int64_t k, int64_t residue, int64_t shift) {
    bool first = axis.residues == 0;
    int64_t at = 0;
    while (at < axis.residues && axis.residue[at] != residue) at++;
    if (at == axis.residues) axis.residue[axis.residues++] = residue;
    axis.use[k] = at;
    axis.shift[k] = shift;
    axis.low = first ? shift : minimum(axis.low, shift);
    axis.high = first ? shift : maximum(axis.high, shift);
}

static Axis forward_axis(const Line &line) {
    Axis axis = {line.in, line.out, 0, 1, line.stride, line.kernel, 0, {}, {}, {}, 0, 0};
    for (int64_t k = 0; k < line.kernel; k++) {
        const int64_t at = k * line.dilation - line.padding;
        const int64_t shift = floor_divide(at, line.stride);
        set_position(axis, k, at - shift * line.stride, shift);
    }
    return axis;
}

// The input positions start, start + stride, ... from the gradient by the output.
static Axis backward_axis(const Line &line, int64_t start) {
    const int64_t count = maximum(0, parts_of(line.in - start, line.stride));
    Axis axis = {line.out, count, start, line.stride, 1, line.kernel, 0, {}, {}, {}, 0, 0};
    for (int64_t k = 0; k < line.kernel; k++) {
        axis.use[k] = -1;
        const int64_t at = start + line.padding - k * line.dilation;
        if (at % line.stride == 0) set_position(axis, k, 0, at / line.stride);
    }
    return axis;
}

// A half-open range; empty if begin >= end.
struct Range {
    int64_t begin, end;
};

// Of the targets [j, j + size), counted from j, those with a source for kernel position k;
// for an axis without a stride.
static Range inside(const Axis &axis, int64_t k, int64_t j, int64_t size) {
    if (axis.use[k] < 0) return {0, 0};
    const int64_t at = j + axis.shift[k];
    return {maximum(0, -at), minimum(size, axis.source - at)};
}

// The kernel positions between which all have a source at target j; those that are never
// read count as either.
static Range positions(const Axis &axis, int64_t j) {
    Range range = {axis.kernel, 0};
    bool all = true;
    for (int64_t k = 0; k < axis.kernel; k++) {
        const Range one = inside(axis, k, j, 1);
        if (one.begin < one.end) {
            range.begin = minimum(range.begin, k);
            range.end = k + 1;
        } else if (axis.use[k] >= 0) {
            all = false;
        }
    }
    return all ? Range{0, axis.kernel} : range.begin < range.end ? range : Range{0, 0};
}

}  // namespace SF_LEVEL
