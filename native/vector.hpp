// Vectors of 16 floats in the compiler's own extension, and a loop over threads.
//
// Included once per level with SF_LEVEL set to the level's name. No header with inline
// functions may be included here (nor <algorithm> and its like): the linker would keep one
// copy of such a function for all levels, and it might be that of the best.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "table.hpp"

#define SF_INLINE inline __attribute__((always_inline))
#define SF_ALWAYS __attribute__((always_inline))
#define SF_UNROLL _Pragma("GCC unroll 16")

// Bytes of a register of the level: GCC keeps wider vectors in memory.
#if defined(__AVX512F__)
#define SF_REGISTER 64
#define SF_QUADS(INDEX) INDEX(0), INDEX(4), INDEX(8), INDEX(12)
#elif defined(__AVX__)
#define SF_REGISTER 32
#define SF_QUADS(INDEX) INDEX(0), INDEX(4)
#else
#define SF_REGISTER 16
#define SF_QUADS(INDEX) INDEX(0)
#endif

#if defined(__clang__)
#define SF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Shuffle{__VA_ARGS__})
#endif

namespace SF_LEVEL {

constexpr int64_t LANES = 16;
constexpr int PIECE = SF_REGISTER / 4, PIECES = 16 / PIECE;

typedef float Piece __attribute__((vector_size(SF_REGISTER)));
typedef float PieceAnywhere __attribute__((vector_size(SF_REGISTER), aligned(4), may_alias));
typedef int32_t Shuffle __attribute__((vector_size(SF_REGISTER)));
typedef float quad __attribute__((vector_size(16)));
typedef float quad_anywhere __attribute__((vector_size(16), aligned(4), may_alias));

// 16 floats, in as many registers as that takes.
struct v16 {
    Piece piece[PIECES];
};

static SF_INLINE v16 load(const float *p) {
    v16 v;
    SF_UNROLL
    for (int i = 0; i < PIECES; i++)
        v.piece[i] = *reinterpret_cast<const PieceAnywhere *>(p + i * PIECE);
    return v;
}
static SF_INLINE void store(float *p, v16 v) {
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) *reinterpret_cast<PieceAnywhere *>(p + i * PIECE) = v.piece[i];
}
static SF_INLINE v16 splat(float a) {
    v16 v;
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) v.piece[i] = a - Piece{};  // not +: -0 stays -0
    return v;
}
static SF_INLINE v16 operator+(v16 a, v16 b) {
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) a.piece[i] += b.piece[i];
    return a;
}
static SF_INLINE v16 operator*(v16 a, v16 b) {
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) a.piece[i] *= b.piece[i];
    return a;
}
static SF_INLINE v16 &operator+=(v16 &a, v16 b) { return a = a + b; }
// NaN stays NaN.
static SF_INLINE v16 positive(v16 v) {
    SF_UNROLL
    for (int i = 0; i < PIECES; i++) v.piece[i] = v.piece[i] < 0 ? Piece{} : v.piece[i];
    return v;
}

static SF_INLINE Piece joined(v16 v) {
    if (PIECES == 4) return (v.piece[0] + v.piece[1]) + (v.piece[2] + v.piece[PIECES - 1]);
    if (PIECES == 2) return v.piece[0] + v.piece[1 % PIECES];
    return v.piece[0];
}
// The sums of the lanes of four vectors.
static SF_INLINE quad sums(v16 a, v16 b, v16 c, v16 d) {
#define SF_LOW(i) i, i + PIECE, i + 1, i + 1 + PIECE
#define SF_HIGH(i) i + 2, i + 2 + PIECE, i + 3, i + 3 + PIECE
#define SF_EVEN(i) i, i + 1, i + PIECE, i + 1 + PIECE
#define SF_ODD(i) i + 2, i + 3, i + 2 + PIECE, i + 3 + PIECE
    const Piece p = joined(a), q = joined(b), r = joined(c), s = joined(d);
    const Piece x = SF_SHUFFLE(p, q, SF_QUADS(SF_LOW)) + SF_SHUFFLE(p, q, SF_QUADS(SF_HIGH));
    const Piece y = SF_SHUFFLE(r, s, SF_QUADS(SF_LOW)) + SF_SHUFFLE(r, s, SF_QUADS(SF_HIGH));
    const Piece z = SF_SHUFFLE(x, y, SF_QUADS(SF_EVEN)) + SF_SHUFFLE(x, y, SF_QUADS(SF_ODD));
    quad quads[PIECE / 4];
    memcpy(quads, &z, sizeof z);
    if (PIECE == 16) return (quads[0] + quads[1]) + (quads[2 % (PIECE / 4)] + quads[PIECE / 4 - 1]);
    if (PIECE == 8) return quads[0] + quads[PIECE / 4 - 1];
    return quads[0];
}
static SF_INLINE float total(v16 v) { return sums(v, v, v, v)[0]; }

static SF_INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
static SF_INLINE int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
static SF_INLINE int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Calls body(part) for every part in [0, parts). Threads take the next part when they are
// ready, so all parts run even if the runtime grants fewer threads than asked for; results
// must depend on the part alone.
template <class Body>
static void parallel(int64_t threads, int64_t parts, Body body) {
    threads = minimum(threads, parts);
    if (threads <= 1 || !sf_fork) {
        for (int64_t part = 0; part < parts; part++) body(part);
        return;
    }
    struct Job {
        Body *body;
        int64_t parts, next;
    } job{&body, parts, 0};
    sf_fork(
        [](void *data) {
            Job *job = static_cast<Job *>(data);
            for (;;) {
                int64_t part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
                if (part >= job->parts) return;
                (*job->body)(part);
            }
        },
        &job, static_cast<unsigned>(threads), 0);
}

// Scratch memory of parts that run at a time, as many as there are threads; none if there is
// no memory. Whoever makes it closes it.
struct Rooms {
    char *memory, *taken;
    int64_t count, bytes;  // bytes: of one, a multiple of 64

    Rooms(int64_t threads, int64_t parts, int64_t bytes)
        : count(maximum(1, minimum(threads, parts))), bytes(bytes) {
        memory = static_cast<char *>(aligned_alloc(64, count * bytes + parts_of(count, 64) * 64));
        taken = memory ? memory + count * bytes : nullptr;
        if (taken) memset(taken, 0, count);
    }
    void close() const { free(memory); }

    char *take_one() const {
        for (int64_t i = 0;; i = (i + 1) % count)
            if (!__atomic_exchange_n(taken + i, 1, __ATOMIC_ACQUIRE)) return memory + i * bytes;
    }
    void leave(const char *room) const {
        __atomic_store_n(taken + (room - memory) / bytes, 0, __ATOMIC_RELEASE);
    }
};

// The first row of a part when rows [0, rows) are split into parts of about equal
// non-zeros: starts[row] is where the row begins, total where the last one ends.
static inline int64_t split(const int32_t *starts, int64_t rows, int64_t total, int64_t part,
                            int64_t parts) {
    if (part <= 0) return 0;
    if (part >= parts) return rows;
    // A row costs something without a non-zero, too.
    const int64_t target = (total + rows) * part / parts;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (starts[middle] + middle < target) low = middle + 1;
        else high = middle;
    }
    return low;
}
static inline int64_t split(const int32_t *starts, int64_t rows, int64_t part, int64_t parts) {
    return split(starts, rows, starts[rows], part, parts);
}

}  // namespace SF_LEVEL
