// Rows of weights times a few tokens' activations: where decoding spends its time.
//
// With so few tokens a weight is used once or some times only, so what it costs to fetch decides: each is read once for all
// tokens, and may be stored in fewer bits than the fp32 that it is computed in (weight-only quantization). Rows are dot products
// along their width, so that fp32 weights are used as the model holds them, without a copy.
//
// Each sum is one chain of multiply-adds in the order of the width, however many rows and tokens share a tile: what a token
// gets doesn't depend, in any bit, on what is computed beside it.

#pragma once

#include "panels.h"

extern "C" {
enum Format : int32_t { FP32, BF16, INT8, INT4 };

// [rows][width]; INT8 has a scale a row; INT4 one for each GROUP of a row, and a byte holds value i (low) and i + GROUP / 2 of it.
struct Weight {
    const void *data;
    const float *scales, *bias;  // bias: none, where null
    int64_t rows, width;
    Format format;
};
}

namespace {

constexpr int64_t GROUP = 32;

typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t Nibbles __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// How rows are read: STEP values at once, at(row, k, part) being the part-th Vector of those at k.
template <Format FORMAT> struct Rows;

template <> struct Rows<FP32> {
    static constexpr int STEP = LANES;
    const Weight &weight;
    const float *place(int64_t row, int64_t k) const { return (const float *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const { return load(place(row, k)); }
    float scale(int64_t) const { return 1; }
};

template <> struct Rows<BF16> {
    static constexpr int STEP = LANES;
    const Weight &weight;
    const uint16_t *place(int64_t row, int64_t k) const { return (const uint16_t *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const {
        return (Vector)(__builtin_convertvector(*(const Halves *)place(row, k), Integers) << 16);
    }
    float scale(int64_t) const { return 1; }
};

template <> struct Rows<INT8> {
    static constexpr int STEP = LANES;
    const Weight &weight;
    const int8_t *place(int64_t row, int64_t k) const { return (const int8_t *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const {
        return __builtin_convertvector(__builtin_convertvector(*(const Bytes *)place(row, k), Integers), Vector);
    }
    float scale(int64_t row) const { return weight.scales[row]; }
};

template <> struct Rows<INT4> {
    static constexpr int STEP = GROUP, LOW = GROUP / 2;
    const Weight &weight;
    const uint8_t *place(int64_t row, int64_t k) const { return (const uint8_t *)weight.data + (row * weight.width + k) / 2; }
    Vector at(int64_t row, int64_t k, int part) const {
        const Integers both = __builtin_convertvector(*(const Nibbles *)(place(row, k) + part * LANES % LOW), Integers);
        const float scale = weight.scales[(row * weight.width + k) / GROUP];
        return __builtin_convertvector(part * LANES < LOW ? both & 15 : both >> 4, Vector) * scale - 8 * scale;
    }
    float scale(int64_t) const { return 1; }
};

// The sum of all lanes, by halves.
inline float total(Vector value) {
    typedef float Half __attribute__((vector_size(2 * LANES)));
    Half low, high;
    std::memcpy(&low, &value, sizeof(low));
    std::memcpy(&high, (const char *)&value + sizeof(low), sizeof(high));
    low += high;
    if constexpr (LANES > 4) {
        Quad a, b{};
        std::memcpy(&a, &low, sizeof(a));
        if constexpr (LANES == 16) std::memcpy(&b, (const char *)&low + sizeof(a), sizeof(b));
        a += b;
        return (a[0] + a[2]) + (a[1] + a[3]);
    }
    return low[0] + low[1];
}

constexpr int SUMS = LANES == 16 ? 16 : 8;  // that fit the registers beside what they are made of
constexpr int MOST_TOKENS = SUMS / 2, MOST_ROWS = 8;

// out[token * stride + row] for ROWS x TOKENS of them.
template <int COUNT, int TOKENS, Format FORMAT>
ALWAYS_INLINE inline void dot_tile(Rows<FORMAT> rows, int64_t row, const float *x, float *out, int64_t stride) {
    const Weight &weight = rows.weight;
    Vector sums[COUNT][TOKENS] = {};
    for (int64_t k = 0; k < weight.width; k += Rows<FORMAT>::STEP) {
#pragma GCC unroll 8
        for (int part = 0; part < Rows<FORMAT>::STEP / LANES; part++) {
            Vector values[COUNT];
#pragma GCC unroll 8
            for (int r = 0; r < COUNT; r++) {
                __builtin_prefetch(rows.place(row + COUNT + r, k));
                values[r] = rows.at(row + r, k, part);
            }
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                const Vector activation = load(x + t * weight.width + k + part * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < COUNT; r++) sums[r][t] += values[r] * activation;
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++) {
        const float scale = rows.scale(row + r), bias = weight.bias ? weight.bias[row + r] : 0;
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) out[t * stride + row + r] = total(sums[r][t]) * scale + bias;
    }
}

template <Format FORMAT>
void dot_products(const Weight &weight, int64_t begin, int64_t end, const float *x, int64_t tokens, float *out, int64_t stride) {
    tiles<MOST_TOKENS>(0, tokens, [&](auto count, int64_t token) {
        constexpr int TOKENS = count();
        tiles<(SUMS / TOKENS < MOST_ROWS ? SUMS / TOKENS : MOST_ROWS)>(begin, end, [&](auto height, int64_t row) {
            dot_tile<height(), TOKENS>(Rows<FORMAT>{weight}, row, x + token * weight.width, out + token * stride, stride);
        });
    });
}

// Rows [begin, end) of the weight times x [tokens][width], plus their biases, to out[token * stride + row].
inline void dot_products(const Weight &weight, int64_t begin, int64_t end, const float *x, int64_t tokens, float *out, int64_t stride) {
    if (weight.format == FP32) return dot_products<FP32>(weight, begin, end, x, tokens, out, stride);
    if (weight.format == BF16) return dot_products<BF16>(weight, begin, end, x, tokens, out, stride);
    if (weight.format == INT8) return dot_products<INT8>(weight, begin, end, x, tokens, out, stride);
    dot_products<INT4>(weight, begin, end, x, tokens, out, stride);
}

// Rows a thread computes at a time: some 128 KiB of weights, which stay in L2 where several tiles of tokens need them,
// but several shares a thread; whole panels, so that what follows can be done in Vectors.
inline int64_t share_of_rows(const Weight &weight, int64_t threads) {
    const int64_t bits = weight.format == FP32 ? 32 : weight.format == BF16 ? 16 : weight.format == INT8 ? 8 : 4;
    const int64_t fitting = (1 << 20) / (weight.width * bits), fair = weight.rows / (4 * threads);
    return std::max<int64_t>(1, std::min(fitting, fair) / PANEL) * PANEL;
}

}  // namespace
