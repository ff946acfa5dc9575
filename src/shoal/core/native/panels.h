// Matrices in panels, and the micro-kernel on which attention and the matrix products stand.
//
// Everything that the kernel reads is first packed into *panels*: a matrix [rows][columns] is stored as
// [columns / 16][rows][16], a row of a panel being one cache line. A panel serves as the right factor (its rows are
// the depth), as the left one (its columns are), and as the left one transposed (its rows are).
//
// Not-a-numbers spread: no flag promises that there are none. Sums have a fixed order: results are the same bits always.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 2;
#endif
constexpr int PANEL = 16, VECTORS = PANEL / LANES;
constexpr int AHEAD = 16;  // rows to prefetch
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

#define ALWAYS_INLINE __attribute__((always_inline))
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Order __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

namespace {

inline Vector load(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }
inline void store(float *to, Vector value) { *reinterpret_cast<Unaligned *>(to) = value; }
inline Vector all(float value) { return value - Vector{}; }
inline Vector larger(Vector a, Vector b) { return b > a ? b : a; }
inline int64_t rounded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

inline Vector lane_numbers() {
    Vector numbers;
    for (int lane = 0; lane < LANES; lane++) numbers[lane] = float(lane);
    return numbers;
}

// 2^x for x < 127, within 2e-7 of it (Cephes' polynomial); 0 below 2^-126.
inline Vector power_of_two(Vector x) {
    const Vector shift = all(12582912.0f);  // 1.5 x 2^23: adding it rounds x, and leaves the integer in the low bits
    const Vector clamped = x < -126.0f ? all(-126.0f) : x;
    const Vector shifted = clamped + shift;
    const Vector f = clamped - (shifted - shift);
    Vector sum = all(1.535336188319500e-4f);
    sum = sum * f + 1.339887440266574e-3f;
    sum = sum * f + 9.618437357674640e-3f;
    sum = sum * f + 5.550332471162809e-2f;
    sum = sum * f + 2.402264791363012e-1f;
    sum = sum * f + 6.931472028550421e-1f;
    sum = sum * f + 1.0f;
    const Integers exponent = ((Integers)shifted << 23) + (127 << 23);
    return x < -126.0f ? Vector{} : sum * (Vector)exponent;
}

inline float sum_of(Vector value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

struct Nothing {
    void operator()(int64_t) const {}
};

// The micro-kernel: COUNT rows of a, times b, of which one panel; calls finish(row, lane, sums) for each vector of the result
// while it is in a register, and meanwhile(step) before each whole 16 of the depth. `depth` is a's columns and b's rows. a's columns lie
// side by side, 16 of them, and the next 16 `a_panel` further; or, with A_COLUMN above 1, a's rows do, its columns A_COLUMN apart.
template <int COUNT, int A_COLUMN = 1, class Finish, class Meanwhile = Nothing>
ALWAYS_INLINE inline void multiply(const float *a, const float *b, int64_t depth, int64_t a_panel, Finish finish,
                                   Meanwhile meanwhile = {}) {
    constexpr int A_ROW = A_COLUMN > 1 ? 1 : PANEL;
    Vector sums[COUNT][VECTORS] = {};
    const auto add = [&](int p) ALWAYS_INLINE {
        Vector row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) row[v] = load(b + p * PANEL + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < COUNT; r++) {
            const Vector value = all(a[r * A_ROW + p * A_COLUMN]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[r][v] += value * row[v];
        }
    };
    for (int64_t step = 0; depth >= PANEL; step++, depth -= PANEL, a += a_panel, b += PANEL * PANEL) {
        meanwhile(step);
#pragma GCC unroll 16
        for (int p = 0; p < PANEL; p++) add(p);
    }
    for (int p = 0; p < depth; p++) add(p);
#pragma GCC unroll 12
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) finish(r, v * LANES, sums[r][v]);
}

// Call work(count, row) for tiles of `COUNT` rows, then for what is left in smaller ones: 4, 2, 1.
template <int COUNT = ROWS, class Work> ALWAYS_INLINE inline void tiles(int64_t begin, int64_t end, Work work) {
    for (; begin + COUNT <= end; begin += COUNT) work(std::integral_constant<int, COUNT>(), begin);
    if constexpr (COUNT > 1) tiles<COUNT % 3 ? COUNT / 2 : COUNT / 3 * 2>(begin, end, work);
}

// A head's rows lie far apart, each in its own page: the processor doesn't guess the next one.
template <bool WRITE> inline void prefetch_row(const float *row, int64_t width) {
    for (int64_t c = 0; c < width; c += PANEL) __builtin_prefetch(row + c, WRITE);
}

// Copy `width` values times `scale`, a multiple of 8.
inline void scaled_copy(float *__restrict to, const float *__restrict from, int64_t width, float scale) {
    for (int64_t c = 0; c < width; c += 8)
        for (int lane = 0; lane < 8; lane++) to[c + lane] = from[c + lane] * scale;
}

// Pack `rows` rows into panels `rows` long, times `scale`; the last panel's missing columns are zeros.
void pack(float *to, const float *from, int64_t stride, int64_t rows, int64_t width, float scale) {
    if (width % PANEL) std::memset(to + width / PANEL * PANEL * rows, 0, sizeof(float) * PANEL * rows);
    for (int64_t row = 0; row < rows; row++, from += stride) {
        prefetch_row<false>(from + AHEAD * stride, width);
        for (int64_t c = 0; c < width; c += PANEL)
            scaled_copy(to + c * rows + row * PANEL, from + c, std::min<int64_t>(PANEL, width - c), scale);
    }
}

// The reverse, times `scale` and, if given, each row's own factor.
void unpack(float *to, int64_t stride, const float *from, int64_t panel_rows, int64_t rows, int64_t width, float scale,
            const float *factors = nullptr) {
    for (int64_t row = 0; row < rows; row++, to += stride) {
        prefetch_row<true>(to + AHEAD * stride, width);
        for (int64_t c = 0; c < width; c += PANEL)
            scaled_copy(to + c, from + c * panel_rows + row * PANEL, std::min<int64_t>(PANEL, width - c),
                        factors ? scale * factors[row] : scale);
    }
}

// Pack the transpose: `rows` become columns, in panels `rounded(width)` long; what is missing is zeros. 4 x 4 at a time:
// element by element it took a fifth of the forward.
void pack_transposed(float *to, const float *from, int64_t stride, int64_t rows, int64_t width) {
    const int64_t depth = rounded(width), whole = rows / 4 * 4;
    if (rows % PANEL || width % PANEL) std::memset(to, 0, sizeof(float) * rounded(rows) * depth);
    for (int64_t row = 0; row < whole; row += 4) {
        for (int64_t ahead = row + AHEAD; ahead < row + AHEAD + 4; ahead++) prefetch_row<false>(from + ahead * stride, width);
        for (int64_t c = 0; c < width; c += 4) {
            const float *source = from + row * stride + c;
            const Quad r0 = *(const Quad *)source, r1 = *(const Quad *)(source + stride);
            const Quad r2 = *(const Quad *)(source + 2 * stride), r3 = *(const Quad *)(source + 3 * stride);
            const Quad low01 = SHUFFLE(r0, r1, 0, 4, 1, 5), high01 = SHUFFLE(r0, r1, 2, 6, 3, 7);
            const Quad low23 = SHUFFLE(r2, r3, 0, 4, 1, 5), high23 = SHUFFLE(r2, r3, 2, 6, 3, 7);
            Quad *column = (Quad *)(to + (row / PANEL) * depth * PANEL + c * PANEL + row % PANEL);
            column[0] = SHUFFLE(low01, low23, 0, 1, 4, 5), column[4] = SHUFFLE(low01, low23, 2, 3, 6, 7);
            column[8] = SHUFFLE(high01, high23, 0, 1, 4, 5), column[12] = SHUFFLE(high01, high23, 2, 3, 6, 7);
        }
    }
    for (int64_t row = whole; row < rows; row++)
        for (int64_t c = 0; c < width; c++) to[(row / PANEL) * depth * PANEL + c * PANEL + row % PANEL] = from[row * stride + c];
}

struct Scratch {
    float *data, *next;
    explicit Scratch(int64_t floats)
        : data(static_cast<float *>(::operator new(floats * sizeof(float), std::align_val_t(64), std::nothrow))), next(data) {}
    ~Scratch() { ::operator delete(data, std::align_val_t(64)); }
    Scratch(const Scratch &) = delete;
    float *take(int64_t floats) { return (next += floats) - floats; }
};

}  // namespace
