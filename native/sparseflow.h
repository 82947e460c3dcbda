// The C interface of the core. Plain functions on raw pointers: no Python, no torch.
//
// Activations are float32 in the blocked layout, 16 examples innermost. Scalars are all
// int64_t, so that a caller needs two argument types only. Every kernel takes the number
// of threads last and returns 0, or 1 if scratch memory could not be had; the result does
// not depend on the number of threads.
#pragma once

#include <stdint.h>

#define SF_ABI 3
#define SF_EXPORT extern "C" __attribute__((visibility("default")))

// One entry per kernel: its name, parameters and arguments. The table of a level
// (table.hpp) and the functions sf_<name> (dispatch.cpp) are made from this list.
#define SF_KERNELS(X) SF_LAYOUT(X) SF_LINEAR(X) SF_POOL(X) SF_NORM(X) SF_CONV(X)

#define SF_LAYOUT(X)                                                                       \
    /* x (examples, features) -> y (ceil(examples / 16), features, 16), zeros behind */    \
    X(block, (const float *x, int64_t examples, int64_t features, float *y,                \
              int64_t threads),                                                            \
      (x, examples, features, y, threads))                                                 \
    /* and back, the first `examples` */                                                   \
    X(unblock, (const float *x, int64_t examples, int64_t features, float *y,              \
                int64_t threads),                                                          \
      (x, examples, features, y, threads))

#define SF_LINEAR(X)                                                                       \
    /* y (nb, out, 16) = W x (nb, in, 16) + bias; starts (blocks + 1, out) */              \
    X(linear_forward,                                                                      \
      (int64_t out, int64_t in, int64_t nb, int64_t width,  const int32_t *starts,         \
       const int32_t *columns, const float *values, const float *bias, const float *x,     \
       float *y, int64_t relu, int64_t threads),                                           \
      (out, in, nb, width, starts, columns, values, bias, x, y, relu, threads))           \
    /* y (out) = W x (in) + bias, one example in the plain layout */                       \
    X(linear_single,                                                                       \
      (int64_t out, const int32_t *pointers, const int32_t *columns, const float *values,  \
       const float *bias, const float *x, float *y, int64_t relu, int64_t threads),        \
      (out, pointers, columns, values, bias, x, y, relu, threads))                         \
    /* dx (nb, in, 16) = W' dy (nb, out, 16); starts (blocks * in + 1), rows and order */  \
    /* of sf_pattern_transpose */                                                          \
    X(linear_input_gradient,                                                               \
      (int64_t out, int64_t in, int64_t nb, int64_t width,  const int32_t *starts,         \
       const int32_t *rows, const int32_t *order, const float *values, const float *dy,    \
       float *dx, int64_t threads),                                                        \
      (out, in, nb, width, starts, rows, order, values, dy, dx, threads))                 \
    /* dvalues (nnz) = sum over examples of dy[row] x[column]; dbias (out) may be NULL */  \
    X(linear_weight_gradient,                                                              \
      (int64_t out, int64_t in, int64_t nb, int64_t width,  const int32_t *starts,         \
       const int32_t *columns, const float *x, const float *dy, float *dvalues,            \
       float *dbias, int64_t threads),                                                     \
      (out, in, nb, width, starts, columns, x, dy, dvalues, dbias, threads))

#define SF_POOL(X)                                                                         \
    /* x (planes, height, width, 16) -> y and index (planes, out height, out width, 16): */ \
    /* tap kh * kernel_w + kw of the maximum; padding <= kernel / 2, kernels up to 15 */   \
    X(max_pool,                                                                            \
      (int64_t planes, int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w,  \
       int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,           \
       const float *x, float *y, uint8_t *index, int64_t threads),                         \
      (planes, height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h,           \
       padding_w, x, y, index, threads))                                                   \
    X(max_pool_gradient,                                                                   \
      (int64_t planes, int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w,  \
       int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,           \
       const float *dy, const uint8_t *index, float *dx, int64_t threads),                 \
      (planes, height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h,           \
       padding_w, dy, index, dx, threads))                                                 \
    /* dx = dy where y is not <= 0, else 0; dx may be dy; 16 floats a vector */            \
    X(relu_gradient,                                                                       \
      (int64_t vectors, const float *dy, const float *y, float *dx, int64_t threads),      \
      (vectors, dy, y, dx, threads))

// Batch norm of x (blocks, channels, size, 16) over the examples and `size` values of each.
// counts: mean and (biased) variance are those of x and written, else they are read.
#define SF_NORM(X)                                                                         \
    /* y = (x - mean) / sqrt(variance + epsilon) * weight + bias + added, then a ReLU if */ \
    /* asked for; weight, bias and added may be NULL */                                    \
    X(norm_forward,                                                                        \
      (int64_t channels, int64_t size, int64_t examples, double epsilon, int64_t counts,   \
       const float *x, const float *added, const float *weight, const float *bias,         \
       float *mean, float *variance, float *y, int64_t relu, int64_t threads),             \
      (channels, size, examples, epsilon, counts, x, added, weight, bias, mean, variance,  \
       y, relu, threads))                                                                  \
    /* all its gradients from dy; y: its output if there was a ReLU, else NULL; weight */  \
    /* and dadded may be NULL; dx is zero in the padding */                                \
    X(norm_gradient,                                                                       \
      (int64_t channels, int64_t size, int64_t examples, double epsilon, int64_t counts,   \
       const float *x, const float *y, const float *dy, const float *weight,               \
       const float *mean, const float *variance, float *dx, float *dadded, float *dweight, \
       float *dbias, int64_t threads),                                                     \
      (channels, size, examples, epsilon, counts, x, y, dy, weight, mean, variance, dx,    \
       dadded, dweight, dbias, threads))

// A convolution is described by 17 numbers: batch blocks, input channels, output channels,
// groups, non-zeros; then for height and for width: input, output, kernel, stride, padding,
// dilation. Kernels have at most 15 positions along an axis. Its taps (starts, place, order)
// are made from a topology in CSR for one size of the input, any number of blocks: some for
// the forward pass and the weight gradient, others for the input gradient (backward).
#define SF_CONV(X)                                                                         \
    /* *entries: of starts */                                                              \
    X(conv_starts, (const int64_t *shape, int64_t backward, int64_t *entries),             \
      (shape, backward, entries))                                                          \
    X(conv_taps, (const int64_t *shape, int64_t backward, const int32_t *pointers,         \
      const int32_t *columns, int32_t *starts, int32_t *place, int32_t *order),            \
      (shape, backward, pointers, columns, starts, place, order))                          \
    /* y (nb, out, oh, ow, 16) from x (nb, in, h, w, 16); bias may be NULL */              \
    X(conv_forward,                                                                        \
      (const int64_t *shape, const int32_t *starts, const int32_t *place,                  \
       const int32_t *order, const float *values, const float *bias, const float *x,       \
       float *y, int64_t relu, int64_t threads),                                           \
      (shape, starts, place, order, values, bias, x, y, relu, threads))                    \
    X(conv_input_gradient,                                                                 \
      (const int64_t *shape, const int32_t *starts, const int32_t *place,                  \
       const int32_t *order, const float *values, const float *dy, float *dx,              \
       int64_t threads),                                                                   \
      (shape, starts, place, order, values, dy, dx, threads))                              \
    X(conv_weight_gradient,                                                                \
      (const int64_t *shape, const int32_t *starts, const int32_t *place,                  \
       const int32_t *order, const float *x, const float *dy, float *dvalues,              \
       float *dbias, int64_t threads),                                                     \
      (shape, starts, place, order, x, dy, dvalues, dbias, threads))

#define SF_DECLARE(name, parameters, arguments) SF_EXPORT int sf_##name parameters;
SF_KERNELS(SF_DECLARE)
#undef SF_DECLARE

// A topology is a matrix (rows, columns) in CSR: pointers (rows + 1), index (nnz) strictly
// ascending within a row. What is wrong with one, 0 if nothing; *where is the row.
enum { SF_POINTERS_START = 1, SF_POINTERS_FALL, SF_POINTERS_END, SF_INDEX_RANGE, SF_INDEX_ORDER };
SF_EXPORT int64_t sf_pattern_check(int64_t rows, int64_t columns, int64_t nnz,
                                   const int32_t *pointers, const int32_t *index,
                                   int64_t *where);
// starts (blocks + 1, rows): where in each row its entries of column block b begin, for
// blocks of `width` columns; those of block b end where those of b + 1 begin.
SF_EXPORT int64_t sf_pattern_starts(int64_t rows, int64_t width, int64_t blocks,
                                    const int32_t *pointers, const int32_t *index,
                                    int32_t *starts);
// The transposed topology, cut into blocks of `width` rows, block after block: starts
// (blocks * columns + 1), where the entries of each block and column begin; and for each
// entry its row and its place in the original order.
SF_EXPORT int64_t sf_pattern_transpose(int64_t rows, int64_t columns, int64_t width,
                                       int64_t blocks, const int32_t *pointers,
                                       const int32_t *index, int32_t *starts,
                                       int32_t *to_rows, int32_t *order);

// The number that changes with this interface.
SF_EXPORT int64_t sf_abi(void);
// The level in use, "" before sf_set_level.
SF_EXPORT const char *sf_level(void);
// The levels built, best first, separated by spaces.
SF_EXPORT const char *sf_levels(void);
// Use a level, or the best that the machine runs for NULL: 0; 1 if it was not built,
// 2 if the machine does not run it.
SF_EXPORT int sf_set_level(const char *name);
// The function that runs a team of threads: GOMP_parallel of the OpenMP runtime that
// the process uses already. NULL, as at the start: one thread.
typedef void (*sf_fork_function)(void (*body)(void *), void *data, unsigned threads,
                                 unsigned flags);
SF_EXPORT void sf_set_fork(sf_fork_function fork);
