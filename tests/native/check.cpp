// Runs every kernel on random shapes against plain loops; built with sanitizers by the
// CMake option SPARSEFLOW_SANITIZE. Ends with status 0 if all is right.
#include "check.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#ifdef _OPENMP
extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
#endif

static int64_t blocks_of(int64_t examples) { return (examples + 15) / 16; }

static void check_pattern() {
    const Matrix m(between(0, 30), between(0, 30), 0.3);
    int64_t where;
    const auto wrong = [&](const Matrix &of, int64_t nnz) {
        return sf_pattern_check(of.rows, of.columns, nnz, of.pointers.data(), of.index.data(),
                                &where);
    };
    require(wrong(m, m.nnz()) == 0, "the check of a topology");
    require(wrong(m, m.nnz() + 1) == SF_POINTERS_END, "the check of the last pointer");
    if (!m.nnz()) return;
    Matrix bad = m;
    bad.index[between(0, m.nnz() - 1)] = static_cast<int32_t>(m.columns);
    require(wrong(bad, m.nnz()) == SF_INDEX_RANGE, "the check of the range");
    bad = m;
    bad.pointers.back() = 1 << 30;
    require(wrong(bad, m.nnz()) == SF_POINTERS_END, "the check of a pointer too far");
    bad.pointers[0] = -1;
    require(wrong(bad, m.nnz()) == SF_POINTERS_START, "the check of the first pointer");
}

static void check_layout(int64_t threads) {
    const int64_t n = between(0, 40), f = between(1, 70), nb = blocks_of(n);
    const Floats x = numbers(n * f);
    Floats y(nb * f * 16, -1), back(n * f);
    require(!sf_block(x.data(), n, f, y.data(), threads), "block");
    for (int64_t e = 0; e < nb * 16; e++)
        for (int64_t i = 0; i < f; i++)
            require(y[((e / 16) * f + i) * 16 + e % 16] == (e < n ? x[e * f + i] : 0), "block");
    require(!sf_unblock(y.data(), n, f, back.data(), threads), "unblock");
    require(back == x, "unblock");
}

static void check_linear(int64_t out, int64_t in, int64_t nb, double density, int64_t width,
                         int64_t threads) {
    const Matrix m(out, in, density);
    const Floats values = numbers(m.nnz()), bias = numbers(out), x = numbers(nb * in * 16),
                 dy = numbers(nb * out * 16);
    Floats y(nb * out * 16), dx(nb * in * 16), dvalues(m.nnz()), dbias(out);
    std::vector<double> ey(y.size()), edx(dx.size()), edvalues(m.nnz()), edbias(out);
    for (int64_t b = 0; b < nb; b++)
        for (int64_t l = 0; l < 16; l++)
            for (int64_t r = 0; r < out; r++) {
                const int64_t to = (b * out + r) * 16 + l;
                ey[to] += bias[r];
                edbias[r] += dy[to];
                for (int64_t k = m.pointers[r]; k < m.pointers[r + 1]; k++) {
                    const int64_t from = (b * in + m.index[k]) * 16 + l;
                    ey[to] += double(values[k]) * x[from];
                    edx[from] += double(values[k]) * dy[to];
                    edvalues[k] += double(dy[to]) * x[from];
                }
                ey[to] = std::max(0.0, ey[to]);
            }
    const Ints starts = m.starts(width);
    sf_linear_forward(out, in, nb, width, starts.data(), m.index.data(), values.data(),
                      bias.data(), x.data(), y.data(), 1, threads);
    require_close(y, ey, "linear_forward");
    if (nb) {
        Floats plain(in), one(out);
        std::vector<double> first(out);
        for (int64_t c = 0; c < in; c++) plain[c] = x[c * 16];
        for (int64_t r = 0; r < out; r++) first[r] = ey[r * 16];
        sf_linear_single(out, m.pointers.data(), m.index.data(), values.data(), bias.data(),
                         plain.data(), one.data(), 1, threads);
        require_close(one, first, "linear_single");
    }
    sf_linear_weight_gradient(out, in, nb, width, starts.data(), m.index.data(), x.data(),
                              dy.data(), dvalues.data(), dbias.data(), threads);
    require_close(dvalues, edvalues, "linear_weight_gradient");
    require_close(dbias, edbias, "the bias of linear_weight_gradient");
    const int64_t blocks = out > width ? (out + width - 1) / width : 1;
    Ints to(blocks * in + 1), rows(m.nnz()), order(m.nnz());
    sf_pattern_transpose(out, in, width, blocks, m.pointers.data(), m.index.data(), to.data(),
                         rows.data(), order.data());
    sf_linear_input_gradient(out, in, nb, width, to.data(), rows.data(), order.data(),
                             values.data(), dy.data(), dx.data(), threads);
    require_close(dx, edx, "linear_input_gradient");
}

static void check_pool(int64_t threads) {
    const int64_t planes = between(0, 3), kh = between(1, 4), kw = between(1, 4),
                  sh = between(1, 3), sw = between(1, 3), ph = between(0, kh / 2),
                  pw = between(0, kw / 2), h = kh + between(0, 6), w = kw + between(0, 6);
    const int64_t oh = (h + 2 * ph - kh) / sh + 1, ow = (w + 2 * pw - kw) / sw + 1;
    const Floats x = numbers(planes * h * w * 16), dy = numbers(planes * oh * ow * 16);
    Floats y(dy.size()), dx(x.size());
    std::vector<uint8_t> index(dy.size());
    std::vector<double> ey(dy.size(), -INFINITY), edx(x.size());
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < oh; i++)
            for (int64_t j = 0; j < ow; j++)
                for (int64_t l = 0; l < 16; l++) {
                    const int64_t to = ((p * oh + i) * ow + j) * 16 + l;
                    int64_t best = 0;
                    for (int64_t a = i * sh - ph; a < i * sh - ph + kh; a++)
                        for (int64_t b = j * sw - pw; b < j * sw - pw + kw; b++) {
                            if (a < 0 || b < 0 || a >= h || b >= w) continue;
                            const int64_t from = ((p * h + a) * w + b) * 16 + l;
                            if (x[from] > ey[to]) ey[to] = x[from], best = from;
                        }
                    edx[best] += dy[to];
                }
    sf_max_pool(planes, h, w, kh, kw, sh, sw, ph, pw, x.data(), y.data(), index.data(), threads);
    require_close(y, ey, "max_pool");
    sf_max_pool_gradient(planes, h, w, kh, kw, sh, sw, ph, pw, dy.data(), index.data(), dx.data(),
                         threads);
    require_close(dx, edx, "max_pool_gradient");
    Floats rectified(y.size());
    sf_relu_gradient(static_cast<int64_t>(y.size() / 16), dy.data(), y.data(), rectified.data(),
                     threads);
    for (size_t i = 0; i < y.size(); i++)
        require(rectified[i] == (y[i] > 0 ? dy[i] : 0), "relu_gradient");
}

static void check_norm(int64_t threads) {
    const int64_t examples = between(1, 40), channels = between(0, 4), size = between(1, 11),
                  nb = blocks_of(examples);
    const bool counts = between(0, 1), affine = between(0, 1), adds = between(0, 1),
               relu = between(0, 1);
    const Floats x = numbers(nb * channels * size * 16), added = numbers(x.size()),
                 dy = numbers(x.size()), weight = numbers(channels), bias = numbers(channels);
    Floats y(x.size()), dx(x.size()), dadded(x.size()), mean(channels, 0.5f),
        variance(channels, 2.0f), dweight(channels), dbias(channels);
    sf_norm_forward(channels, size, examples, 0.1, counts, x.data(),
                    adds ? added.data() : nullptr, affine ? weight.data() : nullptr,
                    affine ? bias.data() : nullptr, mean.data(), variance.data(), y.data(), relu,
                    threads);
    sf_norm_gradient(channels, size, examples, 0.1, counts, x.data(), relu ? y.data() : nullptr,
                     dy.data(), affine ? weight.data() : nullptr, mean.data(), variance.data(),
                     dx.data(), adds ? dadded.data() : nullptr, dweight.data(), dbias.data(),
                     threads);
    std::vector<double> ey(x.size()), edx(x.size()), edweight(channels), edbias(channels);
    for (int64_t c = 0; c < channels; c++) {
        double m = 0, v = 0, sum = 0, product = 0;
        const double count = double(examples * size), w = affine ? weight[c] : 1;
        const auto each = [&](auto body) {
            for (int64_t e = 0; e < examples; e++)
                for (int64_t i = 0; i < size; i++)
                    body(((e / 16 * channels + c) * size + i) * 16 + e % 16);
        };
        each([&](int64_t at) { m += x[at] / count; });
        each([&](int64_t at) { v += (x[at] - m) * (x[at] - m) / count; });
        if (!counts) m = 0.5, v = 2;
        const double inverse = 1 / std::sqrt(v + 0.1);
        const auto g = [&](int64_t at) { return relu && y[at] <= 0 ? 0.0 : dy[at]; };
        each([&](int64_t at) {
            ey[at] = (x[at] - m) * inverse * w + (affine ? bias[c] : 0) + (adds ? added[at] : 0);
            if (relu) ey[at] = std::max(0.0, ey[at]);
            sum += g(at), product += g(at) * (x[at] - m) * inverse;
        });
        each([&](int64_t at) {
            const double part = sum / count + (x[at] - m) * inverse * product / count;
            edx[at] = w * inverse * (g(at) - (counts ? part : 0));
        });
        edweight[c] = product, edbias[c] = sum;
    }
    for (size_t at = 0; at < y.size(); at++) {  // the padding: outputs as they come
        const int64_t block = at / (channels * size * 16);
        if (block * 16 + int64_t(at % 16) >= examples) y[at] = 0, dadded[at] = 0;
        else if (adds) require(dadded[at] == (relu && y[at] <= 0 ? 0 : dy[at]), "dadded");
    }
    require_close(y, ey, "norm_forward");
    require_close(dx, edx, "norm_gradient");
    require_close(dweight, edweight, "the weight of norm_gradient");
    require_close(dbias, edbias, "the bias of norm_gradient");
}

// One axis of a convolution: input, output, kernel, stride, padding, dilation.
struct Line {
    int64_t in, out, kernel, stride, padding, dilation;

    static Line random() {
        Line line = {0, 0, between(1, 5), between(1, 3), between(0, 4), between(1, 2)};
        const int64_t reach = line.dilation * (line.kernel - 1) + 1;
        line.in = std::max<int64_t>(1, reach - 2 * line.padding) + between(0, 20);
        line.out = (line.in + 2 * line.padding - reach) / line.stride + 1;
        return line;
    }
};

static void check_conv(int64_t threads) {
    struct {
        int64_t blocks, in, out, groups, nnz;
        Line h, w;
    } s = {between(0, 3), between(1, 3), between(1, 3), between(1, 2), 0, Line::random(),
           Line::random()};
    if (between(0, 2) == 0) s.in = between(10, 60), s.out = between(10, 40), s.groups = 1;
    s.in *= s.groups, s.out *= s.groups;
    const int64_t *shape = &s.blocks, per_group = s.in / s.groups,
                  kernel = s.h.kernel * s.w.kernel;
    const Matrix m(s.out, per_group * kernel, between(0, 10) / 10.0);
    s.nnz = m.nnz();
    const Floats values = numbers(m.nnz()), bias = numbers(s.out),
                 x = numbers(s.blocks * s.in * s.h.in * s.w.in * 16),
                 dy = numbers(s.blocks * s.out * s.h.out * s.w.out * 16);
    Floats y(dy.size()), dx(x.size()), dvalues(m.nnz()), dbias(s.out);
    std::vector<double> ey(y.size()), edx(x.size()), edvalues(m.nnz()), edbias(s.out);
    for (int64_t at = 0; at < s.blocks * s.out * s.h.out * s.w.out * 16; at++) {
        const int64_t lane = at % 16, column = at / 16 % s.w.out, row = at / 16 / s.w.out % s.h.out,
                      o = at / 16 / s.w.out / s.h.out % s.out,
                      b = at / 16 / s.w.out / s.h.out / s.out;
        ey[at] += bias[o];
        edbias[o] += dy[at];
        for (int64_t k = m.pointers[o]; k < m.pointers[o + 1]; k++) {
            const int64_t c = o / (s.out / s.groups) * per_group + m.index[k] / kernel,
                          kh = m.index[k] % kernel / s.w.kernel, kw = m.index[k] % s.w.kernel,
                          i = row * s.h.stride + kh * s.h.dilation - s.h.padding,
                          j = column * s.w.stride + kw * s.w.dilation - s.w.padding;
            if (i < 0 || j < 0 || i >= s.h.in || j >= s.w.in) continue;
            const int64_t from = (((b * s.in + c) * s.h.in + i) * s.w.in + j) * 16 + lane;
            ey[at] += double(values[k]) * x[from];
            edx[from] += double(values[k]) * dy[at];
            edvalues[k] += double(dy[at]) * x[from];
        }
        ey[at] = std::max(0.0, ey[at]);
    }
    const auto taps = [&](int64_t backward) {
        int64_t entries;
        sf_conv_starts(shape, backward, &entries);
        std::vector<Ints> all = {Ints(entries), Ints(m.nnz()), Ints(m.nnz())};
        sf_conv_taps(shape, backward, m.pointers.data(), m.index.data(), all[0].data(),
                     all[1].data(), all[2].data());
        return all;
    };
    const auto of = taps(0), back = taps(1);
    sf_conv_forward(shape, of[0].data(), of[1].data(), of[2].data(), values.data(), bias.data(),
                    x.data(), y.data(), 1, threads);
    require_close(y, ey, "conv_forward");
    sf_conv_input_gradient(shape, back[0].data(), back[1].data(), back[2].data(), values.data(),
                           dy.data(), dx.data(), threads);
    require_close(dx, edx, "conv_input_gradient");
    sf_conv_weight_gradient(shape, of[0].data(), of[1].data(), of[2].data(), x.data(), dy.data(),
                            dvalues.data(), dbias.data(), threads);
    require_close(dvalues, edvalues, "conv_weight_gradient");
    require_close(dbias, edbias, "the bias of conv_weight_gradient");
}

static void check_level() {
    for (int64_t round = 0; round < 40; round++) {
        const int64_t threads = 1 + round % 3;
        check_pattern();
        check_layout(threads);
        check_linear(between(0, 40), between(0, 40), between(0, 9), between(0, 10) / 10.0,
                     between(1, 50), threads);
        check_pool(threads);
        check_norm(threads);
        check_conv(threads);
    }
    check_linear(1100, 70, 3, 0.1, 256, 2);  // many panels
}

int main() {
#ifdef _OPENMP
    sf_set_fork(GOMP_parallel);
#endif
    const std::string levels = sf_levels();
    for (size_t at = 0; at < levels.size();) {
        const size_t end = std::min(levels.find(' ', at), levels.size());
        const std::string level = levels.substr(at, end - at);
        if (sf_set_level(level.c_str()) == 0) {
            check_level();
            std::printf("%s ", level.c_str());
        }
        at = end + 1;
    }
    require(sf_set_level("none") == 1, "the choice of an unknown level");
    std::printf("are right\n");
    return 0;
}
