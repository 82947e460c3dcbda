// Max pooling and the gradient of ReLU on the blocked layout.
#pragma once

#include "vector.hpp"

namespace SF_LEVEL {

typedef int32_t Place __attribute__((vector_size(SF_REGISTER)));    // of a maximum, per lane
typedef uint8_t PlaceByte __attribute__((vector_size(PIECE)));
typedef uint8_t PlaceByteAnywhere __attribute__((vector_size(PIECE), aligned(1), may_alias));

struct Pooling {
    int64_t height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;

    int64_t out_height() const { return (height + 2 * padding_h - kernel_h) / stride_h + 1; }
    int64_t out_width() const { return (width + 2 * padding_w - kernel_w) / stride_w + 1; }
    bool quarters() const {
        return kernel_h == 2 && kernel_w == 2 && stride_h == 2 && stride_w == 2 && !padding_h &&
               !padding_w;
    }
};

// The part of a window that lies on the image, in one direction.
struct Window {
    int64_t at, begin, end;  // position of its tap 0; its taps

    SF_INLINE Window(int64_t out, int64_t size, int64_t kernel, int64_t stride, int64_t padding)
        : at(out * stride - padding), begin(maximum(0, -at)), end(minimum(kernel, size - at)) {}
};

// The largest so far. As in torch: the first of equals, the last NaN.
struct Best {
    Piece value;
    Place place;

    SF_INLINE void offer(const float *x, int32_t tap) {
        const Piece v = *reinterpret_cast<const PieceAnywhere *>(x);
        const Place better = (v > value) | (v != v);
        value = better ? v : value;
        place = better ? tap - Place{} : place;
    }
    SF_INLINE void write(float *y, uint8_t *index) const {
        *reinterpret_cast<PieceAnywhere *>(y) = value;
        *reinterpret_cast<PlaceByteAnywhere *>(index) = __builtin_convertvector(place, PlaceByte);
    }
};

static SF_INLINE Place places(const uint8_t *index) {
    return __builtin_convertvector(
        static_cast<PlaceByte>(*reinterpret_cast<const PlaceByteAnywhere *>(index)), Place);
}

// One piece of lanes of one window; QUARTERS: 2 x 2, all of it on the image.
template <bool QUARTERS>
static SF_INLINE void pool_window(const Pooling &p, Window h, Window w, const float *x, float *y,
                                  uint8_t *index) {
    if (QUARTERS) h.begin = w.begin = 0, h.end = w.end = 2;
    const int32_t columns = QUARTERS ? 2 : static_cast<int32_t>(p.kernel_w);
    Best best = {-__builtin_inff() - Piece{},
                 static_cast<int32_t>(h.begin * columns + w.begin) - Place{}};
    for (int64_t i = h.begin; i < h.end; i++)
        for (int64_t j = w.begin; j < w.end; j++)
            best.offer(x + ((h.at + i) * p.width + w.at + j) * LANES,
                       static_cast<int32_t>(i * columns + j));
    best.write(y, index);
}

template <bool QUARTERS>
static void pool_plane(const Pooling &p, const float *x, float *y, uint8_t *index) {
    const int64_t oh = p.out_height(), ow = p.out_width();
    for (int64_t i = 0; i < oh; i++)
        for (int64_t j = 0; j < ow; j++) {
            const Window h(i, p.height, p.kernel_h, p.stride_h, p.padding_h);
            const Window w(j, p.width, p.kernel_w, p.stride_w, p.padding_w);
            const int64_t to = (i * ow + j) * LANES;
            SF_UNROLL
            for (int lane = 0; lane < LANES; lane += PIECE)
                pool_window<QUARTERS>(p, h, w, x + lane, y + to + lane, index + to + lane);
        }
}

template <bool QUARTERS>
static SF_INLINE void spread_window(const Pooling &p, Window h, Window w, Piece dy, Place place,
                                    float *dx) {
    if (QUARTERS) h.begin = w.begin = 0, h.end = w.end = 2;
    const int32_t columns = QUARTERS ? 2 : static_cast<int32_t>(p.kernel_w);
    for (int64_t i = h.begin; i < h.end; i++)
        for (int64_t j = w.begin; j < w.end; j++) {
            float *to = dx + ((h.at + i) * p.width + w.at + j) * LANES;
            const Piece share =
                place == static_cast<int32_t>(i * columns + j) - Place{} ? dy : Piece{};
            PieceAnywhere *at = reinterpret_cast<PieceAnywhere *>(to);
            *at = QUARTERS ? share : *at + share;
        }
}

template <bool QUARTERS>
static void spread_plane(const Pooling &p, const float *dy, const uint8_t *index, float *dx) {
    const int64_t oh = p.out_height(), ow = p.out_width();
    if (!QUARTERS || p.height % 2 || p.width % 2)
        memset(dx, 0, p.height * p.width * LANES * sizeof(float));
    for (int64_t i = 0; i < oh; i++)
        for (int64_t j = 0; j < ow; j++) {
            const Window h(i, p.height, p.kernel_h, p.stride_h, p.padding_h);
            const Window w(j, p.width, p.kernel_w, p.stride_w, p.padding_w);
            const int64_t from = (i * ow + j) * LANES;
            SF_UNROLL
            for (int lane = 0; lane < LANES; lane += PIECE)
                spread_window<QUARTERS>(
                    p, h, w, *reinterpret_cast<const PieceAnywhere *>(dy + from + lane),
                    places(index + from + lane), dx + lane);
        }
}

static int max_pool(int64_t planes, int64_t height, int64_t width, int64_t kernel_h,
                    int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                    int64_t padding_w, const float *x, float *y, uint8_t *index,
                    int64_t threads) {
    const Pooling p = {height,   width,    kernel_h,  kernel_w,
                       stride_h, stride_w, padding_h, padding_w};
    parallel(threads, planes, [=](int64_t plane) {
        const int64_t from = plane * height * width * LANES;
        const int64_t to = plane * p.out_height() * p.out_width() * LANES;
        if (p.quarters()) pool_plane<true>(p, x + from, y + to, index + to);
        else pool_plane<false>(p, x + from, y + to, index + to);
    });
    return 0;
}

static int max_pool_gradient(int64_t planes, int64_t height, int64_t width, int64_t kernel_h,
                             int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                             int64_t padding_h, int64_t padding_w, const float *dy,
                             const uint8_t *index, float *dx, int64_t threads) {
    const Pooling p = {height,   width,    kernel_h,  kernel_w,
                       stride_h, stride_w, padding_h, padding_w};
    parallel(threads, planes, [=](int64_t plane) {
        const int64_t from = plane * p.out_height() * p.out_width() * LANES;
        float *to = dx + plane * height * width * LANES;
        if (p.quarters()) spread_plane<true>(p, dy + from, index + from, to);
        else spread_plane<false>(p, dy + from, index + from, to);
    });
    return 0;
}

static int relu_gradient(int64_t vectors, const float *dy, const float *y, float *dx,
                         int64_t threads) {
    const int64_t parts = threads > 1 ? 4 * threads : 1;
    parallel(threads, parts, [=](int64_t part) {
        const int64_t end = vectors * (part + 1) / parts * LANES;
        for (int64_t i = vectors * part / parts * LANES; i < end; i += PIECE) {
            const Piece v = *reinterpret_cast<const PieceAnywhere *>(y + i);
            const Piece d = *reinterpret_cast<const PieceAnywhere *>(dy + i);
            *reinterpret_cast<PieceAnywhere *>(dx + i) = v <= 0 ? Piece{} : d;
        }
    });
    return 0;
}

}  // namespace SF_LEVEL
