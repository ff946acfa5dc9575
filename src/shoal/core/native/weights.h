// Rows of weights times a few tokens' activations: where decoding spends its time.
//
// With so few tokens a weight is used once or some times only, so what it costs to fetch decides: each is read once for all
// tokens, and may be stored in fewer bits than the fp32 that it is computed in (weight-only quantization). Rows are dot products
// along their width, so that fp32 weights are used as the model holds them, without a copy.
//
// Each sum is one chain of multiply-adds in the order of the width, however many rows and tokens share a tile: what a token
// gets doesn't depend, in any bit, on what is computed beside it.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <utility>

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

// LANES integers, made wider. Left to itself, GCC 12 takes them apart.
#if defined(__AVX512F__)
inline Integers widened(const int8_t *from) { return (Integers)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)); }
inline Integers widened(const uint8_t *from) { return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)); }
inline Integers widened(const uint16_t *from) { return (Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)); }
#elif defined(__AVX2__)
inline Integers widened(const int8_t *from) { return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
inline Integers widened(const uint8_t *from) { return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
inline Integers widened(const uint16_t *from) { return (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)); }
#else
template <class Narrow> inline Integers widened(const Narrow *from) {
    Integers wide;
    for (int lane = 0; lane < LANES; lane++) wide[lane] = from[lane];
    return wide;
}
#endif
inline Vector floats(Integers values) { return __builtin_convertvector(values, Vector); }

// How rows are read: STEP values at once, at(row, k, part) being the part-th Vector of those at k.
template <Format FORMAT> struct Rows;

template <> struct Rows<FP32> {
    static constexpr int STEP = LANES, BITS = 32;
    const Weight &weight;
    const float *place(int64_t row, int64_t k) const { return (const float *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const { return load(place(row, k)); }
    float scale(int64_t) const { return 1; }
};

template <> struct Rows<BF16> {
    static constexpr int STEP = LANES, BITS = 16;
    const Weight &weight;
    const uint16_t *place(int64_t row, int64_t k) const { return (const uint16_t *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const { return (Vector)(widened(place(row, k)) << 16); }
    float scale(int64_t) const { return 1; }
};

template <> struct Rows<INT8> {
    static constexpr int STEP = LANES, BITS = 8;
    const Weight &weight;
    const int8_t *place(int64_t row, int64_t k) const { return (const int8_t *)weight.data + row * weight.width + k; }
    Vector at(int64_t row, int64_t k, int) const { return floats(widened(place(row, k))); }
    float scale(int64_t row) const { return weight.scales[row]; }
};

template <> struct Rows<INT4> {
    static constexpr int STEP = GROUP, BITS = 4, LOW = GROUP / 2;
    const Weight &weight;
    const uint8_t *place(int64_t row, int64_t k) const { return (const uint8_t *)weight.data + (row * weight.width + k) / 2; }
    Vector at(int64_t row, int64_t k, int part) const {
        const Integers both = widened(place(row, k) + part * LANES % LOW), code = part * LANES < LOW ? both : both >> 4;
        const float scale = weight.scales[(row * weight.width + k) / GROUP];
#if defined(__AVX512F__)  // a vector is a table of all 16 values, and only the code's last four bits choose
        const Vector table = (lane_numbers() - 8) * scale;
        return (Vector)_mm512_permutexvar_ps((__m512i)code, (__m512)table);
#else
        return floats(code & 15) * scale - 8 * scale;
#endif
    }
    float scale(int64_t) const { return 1; }
};

// The sum of all lanes; through memory, so that what the value belongs to stays in registers.
inline float total(Vector value) {
    alignas(64) float lanes[LANES];
    store(lanes, value);
    Quad sum = *(const Quad *)lanes;
    for (int lane = 4; lane < LANES; lane += 4) sum += *(const Quad *)(lanes + lane);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

constexpr int SUMS = LANES == 16 ? 24 : 12;  // that fit the registers beside what they are made of
constexpr int MOST_TOKENS = SUMS / 3, MOST_ROWS = 8;
constexpr int FURTHER = 1 << 14;  // bytes, to prefetch into L2: L1 is full of activations

// The value, in a register from here on: else GCC reads it from memory once for each use, and the loads take longest.
inline Vector held(Vector value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__SSE2__)
    asm("" : "+x"(value));
#endif
    return value;
}

// Call work(0), ..., work(COUNT - 1), the numbers being types: what they index can stay in registers.
template <int... NUMBERS, class Work> ALWAYS_INLINE inline void each(std::integer_sequence<int, NUMBERS...>, Work work) {
    (work(std::integral_constant<int, NUMBERS>()), ...);
}
template <int COUNT, class Work> ALWAYS_INLINE inline void each(Work work) { each(std::make_integer_sequence<int, COUNT>(), work); }

// out[token * stride + row] of COUNT rows and TOKENS tokens.
template <int COUNT, int TOKENS, Format FORMAT>
ALWAYS_INLINE inline void dot_tile(Rows<FORMAT> rows, int64_t row, const float *x, float *out, int64_t stride) {
    const Weight &weight = rows.weight;
    const int64_t width = weight.width;
    Vector sums[COUNT][TOKENS] = {};
    constexpr int BYTES = COUNT * Rows<FORMAT>::STEP * Rows<FORMAT>::BITS / 8;
    const char *later = (const char *)rows.place(row, 0) + FURTHER;
    for (int64_t k = 0; k < width; k += Rows<FORMAT>::STEP, later += BYTES) {
        each<(BYTES + 63) / 64>([&](auto line) ALWAYS_INLINE { __builtin_prefetch(later + 64 * line, 0, 2); });
        each<Rows<FORMAT>::STEP / LANES>([&](auto part) ALWAYS_INLINE {
            Vector values[COUNT];
            each<COUNT>([&](auto r) ALWAYS_INLINE { values[r] = rows.at(row + r, k, part); });
            each<TOKENS>([&](auto t) ALWAYS_INLINE {
                const Vector activation = held(load(x + t * width + k + part * LANES));
                each<COUNT>([&](auto r) ALWAYS_INLINE { sums[r][t] += values[r] * activation; });
            });
        });
    }
    each<COUNT>([&](auto r) ALWAYS_INLINE {
        const float scale = rows.scale(row + r), bias = weight.bias ? weight.bias[row + r] : 0;
        each<TOKENS>([&](auto t) ALWAYS_INLINE { out[t * stride + row + r] = total(sums[r][t]) * scale + bias; });
    });
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
