// What the kernels need beside a topology: made anew whenever the topology changes.
#include <string.h>

#include "sparseflow.h"

int64_t sf_pattern_check(int64_t rows, int64_t columns, int64_t nnz, const int32_t *pointers,
                         const int32_t *index, int64_t *where) {
    *where = 0;
    if (pointers[0] != 0) return SF_POINTERS_START;
    for (int64_t row = 0; row < rows; row++) {
        *where = row;
        if (pointers[row + 1] < pointers[row]) return SF_POINTERS_FALL;
    }
    if (pointers[rows] != nnz) return SF_POINTERS_END;
    for (int64_t row = 0; row < rows; row++) {
        *where = row;
        int64_t before = -1;
        for (int64_t k = pointers[row]; k < pointers[row + 1]; k++) {
            if (index[k] < 0 || index[k] >= columns) return SF_INDEX_RANGE;
            if (index[k] <= before) return SF_INDEX_ORDER;
            before = index[k];
        }
    }
    return 0;
}

int64_t sf_pattern_starts(int64_t rows, int64_t width, int64_t blocks, const int32_t *pointers,
                          const int32_t *index, int32_t *starts) {
    for (int64_t row = 0; row < rows; row++) {
        int32_t k = pointers[row];
        for (int64_t block = 0; block <= blocks; block++) {
            while (k < pointers[row + 1] && index[k] < block * width) k++;
            starts[block * rows + row] = k;
        }
    }
    return 0;
}

int64_t sf_pattern_transpose(int64_t rows, int64_t columns, int64_t width, int64_t blocks,
                             const int32_t *pointers, const int32_t *index, int32_t *starts,
                             int32_t *to_rows, int32_t *order) {
    const int64_t keys = blocks * columns;
    memset(starts, 0, (keys + 1) * sizeof(int32_t));
    for (int64_t row = 0; row < rows; row++) {
        int32_t *of = starts + row / width * columns + 1;
        for (int64_t k = pointers[row]; k < pointers[row + 1]; k++) of[index[k]]++;
    }
    for (int64_t key = 0; key < keys; key++) starts[key + 1] += starts[key];
    for (int64_t row = 0; row < rows; row++) {
        int32_t *of = starts + row / width * columns;
        for (int64_t k = pointers[row]; k < pointers[row + 1]; k++) {
            const int64_t at = of[index[k]]++;
            to_rows[at] = static_cast<int32_t>(row);
            order[at] = static_cast<int32_t>(k);
        }
    }
    // Each start has moved on to the place of the next.
    memmove(starts + 1, starts, keys * sizeof(int32_t));
    starts[0] = 0;
    return 0;
}
