// Causal self-attention in fp32 and its gradients, the (batch, key-value head) items divided among OpenMP's threads.
//
// Flash-style (Dao et al. 2022): blocks of queries against blocks of keys up to the diagonal, so that the T x T scores
// never leave the L2 cache, and the backward recomputes them from the saved log-sum-exp. All seven matrix products are
// one micro-kernel, an outer product that keeps ROWS x 16 sums in registers: broadcast a, load b, multiply and add.
//
// Everything that the kernel reads is first packed into *panels*: a matrix [rows][columns] is stored as
// [columns / 16][rows][16], a row of a panel being one cache line. A panel serves as the right factor (its rows are
// the depth), as the left one (its columns are), and as the left one transposed (its rows are). Only keys and, for the
// gradient, values are needed transposed as well.
//
// Base 2: queries are packed times scale x log2(e), hence scores, and the saved log-sum-exp, count in powers of two.
// Not-a-numbers spread: no flag promises that there are none. Sums have a fixed order: results are the same bits always.

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
constexpr int QUERIES = 64, KEYS = 128;  // a block's: 64 KiB of scores and their gradients; 48 to 256 are as fast
constexpr int AHEAD = 16;                // rows to prefetch
static_assert(KEYS % QUERIES == 0, "each query of a visited block then sees at least one of its keys");
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

extern "C" {
struct View {  // [batch, head, token, width], the width contiguous
    float *data;
    int64_t batch, head, token;
};
struct Sizes {
    int64_t heads, kv_heads, tokens, width;
    float scale;
};
}

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

// 2^x for x <= about 1, within 2e-7 of it (Cephes' polynomial); 0 below 2^-126.
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

// The micro-kernel: COUNT rows of a, times b, of which one panel. `depth` is a's columns and b's rows; a's columns lie in
// panels `a_panel` apart. TRANSPOSED: a's rows are columns of one panel, its columns the rows.
template <int COUNT, bool TRANSPOSED = false>
void multiply(float *to, const float *a, const float *b, int64_t depth, int64_t a_panel = PANEL * PANEL) {
    constexpr int A_ROW = TRANSPOSED ? 1 : PANEL, A_COLUMN = TRANSPOSED ? PANEL : 1;
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
    for (; depth >= PANEL; depth -= PANEL, a += a_panel, b += PANEL * PANEL)
#pragma GCC unroll 16
        for (int p = 0; p < PANEL; p++) add(p);
    for (int p = 0; p < depth; p++) add(p);
#pragma GCC unroll 12
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(to + r * PANEL + v * LANES, sums[r][v]);
}

// Call work(count, row) for tiles of `COUNT` rows, then for what is left in smaller ones: 6, 4, 2, 1.
template <int COUNT = ROWS, class Work> ALWAYS_INLINE inline void tiles(int64_t begin, int64_t end, Work work) {
    for (; begin + COUNT <= end; begin += COUNT) work(std::integral_constant<int, COUNT>(), begin);
    if constexpr (COUNT > 1) tiles<COUNT % 3 ? COUNT / 2 : COUNT / 3 * 2>(begin, end, work);
}

// Call finish(row, lane, sums) for each vector of a tile of `count` rows that a multiply wrote.
template <class Finish> ALWAYS_INLINE inline void each(const float *tile, int count, Finish finish) {
    for (int r = 0; r < count; r++)
        for (int lane = 0; lane < PANEL; lane += LANES) finish(r, lane, load(tile + r * PANEL + lane));
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

// One block of scores: queries [query, query + queries) against keys [key, key + keys), keys not beyond the last query.
struct Block {
    int64_t query, queries, key, keys;

    int64_t first_query(int64_t k) const { return std::max<int64_t>(0, key + k - query); }
    int64_t keys_seen(int64_t q) const { return std::min(keys, query + q - key + 1); }

    // Call finish(scores' row, query, key, sum) for the product of a's rows and b's panels, at and below the diagonal.
    template <class Finish>
    void products(float *scores, const float *a, int64_t a_panel, const float *b, int64_t depth, Finish finish) const {
        alignas(64) float tile[ROWS * PANEL];
        for (int64_t k = 0; k < keys; k += PANEL, scores += QUERIES * PANEL, b += depth * PANEL) {
            const int64_t first = first_query(k), above = std::max<int64_t>(0, first - ROWS + 1);
            // A tile of rows that crosses the diagonal reads, as its depth, a little above it.
            std::memset(scores + above * PANEL, 0, sizeof(float) * (first - above) * PANEL);
            tiles(first, queries, [&](auto count, int64_t row) {
                multiply<count()>(tile, a + row * PANEL, b, depth, a_panel);
                each(tile, count(), [&](int r, int lane, Vector sum) {
                    finish(scores + (row + r) * PANEL + lane, row + r, k + lane, sum);
                });
            });
        }
    }

    // Call finish(query, column, sum) for scores times the panels of b.
    template <class Finish>
    void times(const float *scores, const float *b, int64_t b_panel, int64_t width, Finish finish) const {
        alignas(64) float tile[ROWS * PANEL];
        for (int64_t column = 0; column < width; column += PANEL, b += b_panel)
            tiles(0, queries, [&](auto count, int64_t row) {
                multiply<count()>(tile, scores + row * PANEL, b, keys_seen(row + count() - 1), QUERIES * PANEL);
                each(tile, count(), [&](int r, int lane, Vector sum) { finish(row + r, column + lane, sum); });
            });
    }

    // Add scores transposed times the panels of b to those of `to`.
    void transposed_times(const float *scores, const float *b, int64_t panel, int64_t width, float *to) const {
        alignas(64) float tile[ROWS * PANEL];
        for (int64_t k = 0; k < keys; k += PANEL, scores += QUERIES * PANEL)
            for (int64_t column = 0; column < width; column += PANEL)
                tiles(0, std::min<int64_t>(PANEL, keys - k), [&](auto count, int64_t row) {
                    const int64_t first = first_query(k + row);
                    const float *factor = b + column / PANEL * panel + first * PANEL;
                    float *target = to + column / PANEL * panel + (k + row) * PANEL;
                    multiply<count(), true>(tile, scores + first * PANEL + row, factor, queries - first);
                    each(tile, count(), [&](int r, int lane, Vector sum) {
                        float *place = target + r * PANEL + lane;
                        store(place, load(place) + sum);
                    });
                });
    }
};

// One row of scores to exp2(score - maximum), beyond `seen` to zero; updates the row's running maximum and sum and
// returns what the sums so far must be multiplied by.
float softmax_row(float *row, int64_t seen, float &maximum, float &sum) {
    const Vector lanes = lane_numbers();
    Vector largest = all(-INFINITY), total{};
    for (int64_t k = 0; k < seen; k += LANES) {
        float *place = row + (k / PANEL) * QUERIES * PANEL + k % PANEL;
        Vector score = load(place);
        if (k + LANES > seen) store(place, score = lanes < float(seen - k) ? score : all(-INFINITY));
        largest = larger(largest, score);
    }
    float highest = maximum;
    for (int lane = 0; lane < LANES; lane++) highest = largest[lane] > highest ? largest[lane] : highest;
    for (int64_t k = 0; k < rounded(seen); k += LANES) {
        float *place = row + (k / PANEL) * QUERIES * PANEL + k % PANEL;
        const Vector weight = k < seen ? power_of_two(load(place) - highest) : Vector{};
        store(place, weight);
        total += weight;
    }
    const float correction = std::exp2(maximum - highest);
    sum = sum * correction + sum_of(total);
    maximum = highest;
    return correction;
}

inline float *at(const View &view, int64_t batch, int64_t head, int64_t token) {
    return view.data + batch * view.batch + head * view.head + token * view.token;
}

}  // namespace

// out and logsumexp [batch, heads, tokens] of items [begin, end), an item being batch x kv_heads + kv_head.
static int forward_items(const View *q, const View *k, const View *v, const View *out, float *logsumexp, const Sizes *sizes,
                      int64_t begin, int64_t end) {
    const int64_t tokens = sizes->tokens, width = sizes->width, depth = rounded(width);
    const int64_t group = sizes->heads / sizes->kv_heads;
    Scratch scratch((rounded(tokens) + tokens + 2 * QUERIES) * depth + QUERIES * KEYS);
    if (!scratch.data) return 1;
    float *keys = scratch.take(rounded(tokens) * depth), *values = scratch.take(tokens * depth);
    float *queries = scratch.take(QUERIES * depth), *sums = scratch.take(QUERIES * depth);
    float *scores = scratch.take(QUERIES * KEYS);
    for (int64_t item = begin; item < end; item++) {
        const int64_t batch = item / sizes->kv_heads, kv_head = item % sizes->kv_heads;
        pack_transposed(keys, at(*k, batch, kv_head, 0), k->token, tokens, width);
        pack(values, at(*v, batch, kv_head, 0), v->token, tokens, width, 1);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t query = 0; query < tokens; query += QUERIES) {
                const int64_t rows = std::min<int64_t>(QUERIES, tokens - query);
                float maximum[QUERIES], sum[QUERIES], correction[QUERIES];
                std::fill_n(maximum, QUERIES, -INFINITY);
                std::fill_n(sum, QUERIES, 0.0f);
                pack(queries, at(*q, batch, head, query), q->token, rows, width, sizes->scale * LOG2_E);
                for (int64_t key = 0; key < query + rows; key += KEYS) {
                    const Block block{query, rows, key, std::min<int64_t>(KEYS, query + rows - key)};
                    block.products(scores, queries, rows * PANEL, keys + key * depth, depth,
                                   [](float *place, int64_t, int64_t, Vector score) { store(place, score); });
                    for (int64_t row = 0; row < rows; row++)
                        correction[row] = softmax_row(scores + row * PANEL, block.keys_seen(row), maximum[row], sum[row]);
                    block.times(scores, values + key * PANEL, tokens * PANEL, depth, [&](int64_t row, int64_t column, Vector value) {
                        float *place = sums + (column / PANEL) * QUERIES * PANEL + row * PANEL + column % PANEL;
                        store(place, key ? load(place) * correction[row] + value : value);
                    });
                }
                float *row_logsumexp = logsumexp + (batch * sizes->heads + head) * tokens + query;
                for (int64_t row = 0; row < rows; row++) {
                    row_logsumexp[row] = maximum[row] + std::log2(sum[row]);
                    sum[row] = 1 / sum[row];
                }
                unpack(at(*out, batch, head, query), out->token, sums, QUERIES, rows, width, 1, sum);
            }
    }
    return 0;
}

// dq, dk, dv of the same items, from the forward's out and logsumexp and the gradient dout.
static int backward_items(const View *q, const View *k, const View *v, const View *out, const View *dout, const View *dq,
                       const View *dk, const View *dv, const float *logsumexp, const Sizes *sizes, int64_t begin, int64_t end) {
    const int64_t tokens = sizes->tokens, width = sizes->width, depth = rounded(width);
    const int64_t group = sizes->heads / sizes->kv_heads, whole = tokens * depth, panel = tokens * PANEL;
    Scratch scratch(6 * whole + 2 * rounded(tokens) * depth + 2 * QUERIES * KEYS + tokens);
    if (!scratch.data) return 1;
    float *keys = scratch.take(whole), *key_columns = scratch.take(rounded(tokens) * depth);
    float *value_columns = scratch.take(rounded(tokens) * depth), *queries = scratch.take(whole), *douts = scratch.take(whole);
    float *dqueries = scratch.take(whole), *dkeys = scratch.take(whole), *dvalues = scratch.take(whole);
    float *weights = scratch.take(QUERIES * KEYS), *dscores = scratch.take(QUERIES * KEYS), *shared = scratch.take(tokens);
    const Vector lanes = lane_numbers();
    for (int64_t item = begin; item < end; item++) {
        const int64_t batch = item / sizes->kv_heads, kv_head = item % sizes->kv_heads;
        pack(keys, at(*k, batch, kv_head, 0), k->token, tokens, width, 1);
        pack_transposed(key_columns, at(*k, batch, kv_head, 0), k->token, tokens, width);
        pack_transposed(value_columns, at(*v, batch, kv_head, 0), v->token, tokens, width);
        std::memset(dkeys, 0, sizeof(float) * whole);
        std::memset(dvalues, 0, sizeof(float) * whole);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
            const float *row_logsumexp = logsumexp + (batch * sizes->heads + head) * tokens;
            pack(queries, at(*q, batch, head, 0), q->token, tokens, width, sizes->scale * LOG2_E);
            pack(douts, at(*dout, batch, head, 0), dout->token, tokens, width, 1);
            std::memset(dqueries, 0, sizeof(float) * whole);
            for (int64_t token = 0; token < tokens; token++) {  // what softmax's gradient subtracts: sum of weight x dweight
                const float *o = at(*out, batch, head, token), *d = at(*dout, batch, head, token);
                prefetch_row<false>(o + AHEAD * out->token, width);
                float sums[8] = {};
                for (int64_t c = 0; c < width; c += 8)
                    for (int lane = 0; lane < 8; lane++) sums[lane] += o[c + lane] * d[c + lane];
                shared[token] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
            }
            for (int64_t key = 0; key < tokens; key += KEYS)
                for (int64_t query = key; query < tokens; query += QUERIES) {
                    const int64_t rows = std::min<int64_t>(QUERIES, tokens - query);
                    const Block block{query, rows, key, std::min<int64_t>(KEYS, query + rows - key)};
                    block.products(weights, queries + query * PANEL, panel, key_columns + key * depth, depth,
                                   [&](float *place, int64_t row, int64_t column, Vector score) {
                                       const Vector weight = power_of_two(score - row_logsumexp[query + row]);
                                       const int64_t seen = query + row - key - column + 1;
                                       store(place, seen < LANES ? (lanes < float(seen) ? weight : Vector{}) : weight);
                                   });
                    block.products(dscores, douts + query * PANEL, panel, value_columns + key * depth, depth,
                                   [&](float *place, int64_t row, int64_t, Vector dweight) {
                                       store(place, load(weights + (place - dscores)) * (dweight - shared[query + row]));
                                   });
                    block.transposed_times(weights, douts + query * PANEL, panel, depth, dvalues + key * PANEL);
                    block.transposed_times(dscores, queries + query * PANEL, panel, depth, dkeys + key * PANEL);
                    block.times(dscores, keys + key * PANEL, panel, depth, [&](int64_t row, int64_t column, Vector value) {
                        float *place = dqueries + (column / PANEL) * panel + (query + row) * PANEL + column % PANEL;
                        store(place, load(place) + value);
                    });
                }
            unpack(at(*dq, batch, head, 0), dq->token, dqueries, tokens, tokens, width, sizes->scale);
        }
        unpack(at(*dk, batch, kv_head, 0), dk->token, dkeys, tokens, tokens, width, LN_2);
        unpack(at(*dv, batch, kv_head, 0), dv->token, dvalues, tokens, tokens, width, 1);
    }
    return 0;
}

// Equal parts of the items, one a thread. The pool is the one that PyTorch's operations use, so that no thread of theirs,
// waiting busily for its next work, holds the core that one of ours needs.
template <class Work> static int in_parts(int64_t items, int64_t threads, Work work) {
    int failed = 0;
#pragma omp parallel for num_threads(int(threads)) schedule(static) reduction(| : failed)
    for (int64_t part = 0; part < threads; part++) failed |= work(items * part / threads, items * (part + 1) / threads);
    return failed;
}

// Both return 0, or 1 when there is no memory for the blocks.
extern "C" {

int attention_forward(const View *q, const View *k, const View *v, const View *out, float *logsumexp, const Sizes *sizes,
                      int64_t items, int64_t threads) {
    return in_parts(items, threads, [&](int64_t begin, int64_t end) {
        return forward_items(q, k, v, out, logsumexp, sizes, begin, end);
    });
}

int attention_backward(const View *q, const View *k, const View *v, const View *out, const View *dout, const View *dq,
                       const View *dk, const View *dv, const float *logsumexp, const Sizes *sizes, int64_t items, int64_t threads) {
    return in_parts(items, threads, [&](int64_t begin, int64_t end) {
        return backward_items(q, k, v, out, dout, dq, dk, dv, logsumexp, sizes, begin, end);
    });
}

}  // extern "C"
