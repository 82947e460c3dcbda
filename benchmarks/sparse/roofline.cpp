// What the machine can do at best: multiply-adds in registers, and multiply-adds that each
// read a vector from random rows of a working set.
//
// Usage: roofline THREADS ROUNDS BYTES...; prints one line a round, in GFLOP/s: registers,
// then one number for each size of the working set of one thread.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

// The widest vector of the level it is compiled for, and as many of them in a row of the
// working set as registers can add up.
#if defined(__AVX512F__)
constexpr int BYTES = 64, VECTORS = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, VECTORS = 12;
#else
constexpr int BYTES = 16, VECTORS = 12;
#endif
typedef float vector __attribute__((vector_size(BYTES)));
constexpr int LANES = BYTES / 4, INDICES = 1 << 14;
constexpr double VECTOR_FLOPS = 2.0 * LANES;

static double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Keeps the compiler from dropping what led to a value.
static void use(const vector &value) { __asm__ volatile("" : : "m"(value) : "memory"); }

// Taking the address of the sums themselves would put each into memory at each step.
template <int COUNT>
static vector total(const vector (&sums)[COUNT]) {
    vector sum = sums[0];
    for (int k = 1; k < COUNT; k++) sum += sums[k];
    return sum;
}

static double registers(int64_t steps) {
    vector sums[10];
    for (vector &sum : sums) sum = 1.0f - vector{};
    vector factor = 0.999f - vector{}, term = 0.001f - vector{};
    use(factor), use(term);
    for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 10
        for (int k = 0; k < 10; k++) sums[k] = sums[k] * factor + term;
    }
    use(total(sums));
    return 10 * VECTOR_FLOPS * static_cast<double>(steps);
}

static double rows(const float *data, const std::vector<int32_t> &index,
                   const std::vector<float> &weights, int64_t repeats) {
    vector sums[VECTORS] = {};
    for (int64_t repeat = 0; repeat < repeats; repeat++) {
        for (int k = 0; k < INDICES; k++) {
            const vector *row = reinterpret_cast<const vector *>(data) + int64_t{index[k]} * VECTORS;
            const vector weight = weights[k] - vector{};
#pragma GCC unroll 12
            for (int v = 0; v < VECTORS; v++) sums[v] += weight * row[v];
        }
    }
    use(total(sums));
    return VECTOR_FLOPS * VECTORS * INDICES * static_cast<double>(repeats);
}

// GFLOP/s of all threads together; make(thread) prepares, and returns what is timed.
template <class Make>
static double rate(int threads, Make make) {
    std::vector<double> flops(threads), seconds(threads);
    std::vector<std::thread> pool;
    for (int thread = 0; thread < threads; thread++)
        pool.emplace_back([&, thread] {
            auto work = make(thread);
            const double start = now();
            flops[thread] = work();
            seconds[thread] = now() - start;
        });
    double total = 0;
    for (int thread = 0; thread < threads; thread++) {
        pool[thread].join();
        total += flops[thread] / seconds[thread] / 1e9;
    }
    return total;
}

static double random_rows(int threads, size_t bytes) {
    return rate(threads, [bytes](int thread) {
        const size_t count = bytes / (VECTORS * sizeof(vector));
        float *data = static_cast<float *>(std::aligned_alloc(64, count * VECTORS * sizeof(vector)));
        for (size_t i = 0; i < count * VECTORS * LANES; i++) data[i] = 1e-9f * (i % 1000);
        std::vector<int32_t> index(INDICES);
        uint32_t state = 123u + thread;
        for (int32_t &row : index) {
            state = state * 1664525u + 1013904223u;
            row = static_cast<int32_t>((state >> 8) % count);
        }
        const std::vector<float> weights(INDICES, 0.5f);
        rows(data, index, weights, 4);
        return [=] {
            const double done = rows(data, index, weights, 100);
            std::free(data);
            return done;
        };
    });
}

int main(int count, char **arguments) {
    if (count < 4) return 1;
    const int threads = std::atoi(arguments[1]), rounds = std::atoi(arguments[2]);
    for (int round = 0; round < rounds; round++) {
        std::printf("%g", rate(threads, [](int) { return [] { return registers(3000000); }; }));
        for (int k = 3; k < count; k++)
            std::printf(" %g", random_rows(threads, std::strtoull(arguments[k], nullptr, 10)));
        std::printf("\n");
    }
}
