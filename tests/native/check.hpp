// Random numbers and comparisons for the check of the kernels under sanitizers.
//
// Every buffer is a vector of exactly its size, so that the first byte read or written
// beyond it is found.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../native/sparseflow.h"

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

inline std::mt19937 draw(0);

inline int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(draw);
}

inline float number() { return std::normal_distribution<float>()(draw); }

inline Floats numbers(int64_t size) {
    Floats all(size);
    for (float &each : all) each = number();
    return all;
}

inline void require(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "%s is wrong (level %s)\n", what, sf_level());
    std::exit(1);
}

inline void require_close(const Floats &actual, const std::vector<double> &exact,
                          const char *what) {
    require(actual.size() == exact.size(), what);
    for (size_t i = 0; i < exact.size(); i++)
        require(std::abs(actual[i] - exact[i]) <= 1e-4 * (1 + std::abs(exact[i])), what);
}

// A random matrix in CSR, as sorted columns of each row.
struct Matrix {
    int64_t rows, columns;
    Ints pointers{0}, index;

    Matrix(int64_t rows, int64_t columns, double density) : rows(rows), columns(columns) {
        std::bernoulli_distribution chosen(density);
        for (int64_t r = 0; r < rows; r++) {
            for (int32_t c = 0; c < columns; c++)
                if (chosen(draw)) index.push_back(c);
            pointers.push_back(static_cast<int32_t>(index.size()));
        }
    }
    int64_t nnz() const { return static_cast<int64_t>(index.size()); }
    Ints starts(int64_t width) const {
        const int64_t blocks = columns > width ? (columns + width - 1) / width : 1;
        Ints all((blocks + 1) * rows);
        sf_pattern_starts(rows, width, blocks, pointers.data(), index.data(), all.data());
        return all;
    }
};
