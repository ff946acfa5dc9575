// Matrix products in fp32 for a CPU's caches, open at both ends: what is packed may be computed on the way in, and what
// comes out may be changed on the way out, while it is in registers anyway. That is what a library's product can't do.
//
// The loops are Goto's (Goto and van de Geijn 2008): the right factor is packed once, by all threads, into panels that pass
// through the L1 cache, each called to L2 while the one before is in use; blocks of rows of the left one are packed by the
// thread that multiplies them and stay in L2.
// Blocks go to whichever thread is free, so that a core that loses time to others doesn't hold up the rest. A block's sums
// are always in the same order: results don't depend on the number of threads.

#pragma once

#include <atomic>
#include <memory>

#include "panels.h"

namespace {

constexpr int64_t DEPTH = 384;  // of a pass: a panel of 24 KiB in L1
constexpr int64_t BLOCK = 96;   // rows at most: 144 KiB in L2
// Of a right factor of that many floats, rows at most: each block reads all of the factor, from L3 or memory, which cores
// share. 576 KiB, in an L2 of 1 MiB (AMD's processors with AVX-512) or 2 (Intel's for servers).
constexpr int64_t LARGE = 1 << 20, LARGE_BLOCK = LANES == 16 ? 4 * BLOCK : BLOCK;

// Rows that are read side by side where they are packed: from memory, one after the other took twice as long.
constexpr int STREAMS = 8;

// Memory that is kept from call to call: fresh pages would cost more than the packing. Not for two uses at a time.
inline float *kept(int use, int64_t floats) {
    thread_local std::unique_ptr<Scratch> buffers[5];
    thread_local int64_t sizes[5] = {};
    if (sizes[use] < floats) {
        sizes[use] = 0;
        buffers[use].reset();  // first, so that both are not there at a time
        buffers[use] = std::make_unique<Scratch>(floats);
        if (!buffers[use]->data) throw std::bad_alloc();
        sizes[use] = floats;
    }
    return buffers[use]->data;
}

enum Use { RIGHT, LEFT, LOGITS, PROJECTION, PROJECTION_COLUMNS };

// Divide [0, items) among the threads of a pool that is PyTorch's own: call work(item) for each, one thread an item.
template <class Work> void share_out(int64_t items, int64_t threads, Work work) {
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(int(std::max<int64_t>(1, std::min(threads, items))))
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item);
}

// How a factor is read. `value(row, column)` is a Vector of LANES neighbours in its row.
struct Plain {
    const float *data;
    int64_t stride;
    Vector operator()(int64_t row, int64_t column) const { return load(data + row * stride + column); }
};

// The right factor B [depth][columns], in passes over its depth: `pass(k)` gives the panels of rows k to k + DEPTH at most, one
// after the other.

// B from its rows, value(k, column), columns a multiple of LANES. Packed pass by pass into a memory that is still warm when it is
// read: best where C has fewer rows than B.
template <class Value> struct RightRows {
    static constexpr bool PACKED = false;
    Value value;
    int64_t depth, columns, threads;

    const float *pass(int64_t k) const { return pack(kept(RIGHT, rounded(columns) * DEPTH), k); }

    const float *pack(float *to, int64_t from) const {
        const int64_t height = std::min(DEPTH, depth - from), slice = 32;
        share_out((height + slice - 1) / slice, threads, [&](int64_t number) {
            tiles<STREAMS>(number * slice, std::min(height, (number + 1) * slice), [&](auto count, int64_t k) {
                for (int64_t column = 0; column < columns; column += LANES)
                    for (int i = 0; i < count(); i++)
                        store(to + column / PANEL * PANEL * height + (k + i) * PANEL + column % PANEL, value(from + k + i, column));
            });
        });
        return to;
    }
};

// B from its transpose, stored as [columns][depth], depth a multiple of PANEL; to be packed whole.
struct RightColumns {
    const float *data;
    int64_t depth, columns, threads;

    const float *pack(float *to, int64_t from) const {
        const int64_t height = std::min(DEPTH, depth - from), slice = 6 * PANEL;
        share_out((columns + slice - 1) / slice, threads, [&](int64_t number) {
            const int64_t column = number * slice;
            pack_transposed(to + column * height, data + column * depth + from, depth, std::min(slice, columns - column), height);
        });
        return to;
    }
};

// B packed whole, at once: best where C has many rows, and for several products.
struct RightPacked {
    static constexpr bool PACKED = true;
    const float *data;
    int64_t depth, columns;

    template <class Right>
    RightPacked(Use use, const Right &right)
        : RightPacked(kept(use, rounded(right.columns) * right.depth), right) {}
    template <class Right> RightPacked(float *to, const Right &right) : data(to), depth(right.depth), columns(right.columns) {
        for (int64_t k = 0; k < depth; k += DEPTH) right.pack(to + k * rounded(columns), k);
    }
    const float *pass(int64_t k) const { return data + k * rounded(columns); }
};

// The left factor A [rows][depth] from value(row, k), which is read in whole Vectors. Packed as tiles of some rows, each as panels of
// its columns.
template <class Value> struct ByRows {
    Value value;

    void pack(float *to, int64_t row, int64_t rows, int64_t k, int64_t depth) const {
        tiles(0, rows, [&](auto count, int64_t r) {
            float *tile = to + r * rounded(depth);
            for (int64_t c = 0; c < depth; c += LANES)
                for (int i = 0; i < count(); i++)
                    store(tile + c / PANEL * PANEL * count() + i * PANEL + c % PANEL, value(row + r + i, k + c));
        });
    }
    template <int COUNT, class Finish, class Meanwhile>
    ALWAYS_INLINE static void tile(const float *a, int64_t row, const float *b, int64_t depth, Finish finish, Meanwhile meanwhile) {
        multiply<COUNT>(a + row * rounded(depth), b, depth, PANEL * COUNT, finish, meanwhile);
    }
};

// The left factor A [rows][depth], stored as its transpose [depth][rows]. Packed as tiles of its rows; adds up each row in
// `sums` on the way, where wanted: a bias's gradient.
struct ByColumns {
    const float *data;
    int64_t stride;
    float *sums = nullptr;

    void pack(float *to, int64_t row, int64_t rows, int64_t k, int64_t depth) const {
        const float *from = data + k * stride + row;
        float total[BLOCK] = {};  // rows at most, as what it is multiplied by is not packed whole
        for (int64_t c = 0; c < depth; c++, from += stride) {
            prefetch_row<false>(from + AHEAD * stride, rows);
            tiles(0, rows, [&](auto count, int64_t r) { std::memcpy(to + r * depth + c * count(), from + r, sizeof(float) * count()); });
            if (sums)
                for (int64_t r = 0; r < rows; r++) total[r] += from[r];
        }
        if (sums)
            for (int64_t r = 0; r < rows; r++) sums[row + r] = (k ? sums[row + r] : 0) + total[r];
    }
    template <int COUNT, class Finish, class Meanwhile>
    ALWAYS_INLINE static void tile(const float *a, int64_t row, const float *b, int64_t depth, Finish finish, Meanwhile meanwhile) {
        multiply<COUNT, COUNT>(a + row * depth, b, depth, PANEL * COUNT, finish, meanwhile);
    }
};

// What is done with a sum on its way out: `operator()` while it is in a register or, where that takes many registers itself,
// `tile` AFTERWARDS, in L1. `touch` calls what `tile` will read, while the product is computed.
struct Same {
    static constexpr bool AFTERWARDS = false;
    void touch(int64_t, int64_t) const {}
    Vector operator()(int64_t, Vector sum) const { return sum; }
};

// C [rows][columns] = finish(A B); `add`: to what is there. C's rows are `stride` apart and
// have room for whole panels.
template <class Left, class Right, class Finish>
void product(float *c, int64_t stride, int64_t rows, Left left, const Right &right, bool add, int64_t threads, Finish finish) {
    // as many blocks a thread as it takes, of whole tiles, that differ by one at most
    const int64_t most = Right::PACKED && right.depth * right.columns >= LARGE ? LARGE_BLOCK : BLOCK;
    const int64_t blocks_each = std::max<int64_t>(1, (rows + threads * most - 1) / (threads * most));
    const int64_t height_in_tiles = (rows + ROWS - 1) / ROWS, blocks = std::min(height_in_tiles, threads * blocks_each);
    const auto begin = [&](int64_t number) { return std::min(rows, height_in_tiles * number / blocks * ROWS); };
    const auto multiply_block = [&](int64_t number, int64_t k, const float *panels) {
        const int64_t row = begin(number), height = begin(number + 1) - row, depth = std::min(DEPTH, right.depth - k);
        const bool begun = add || k, last = k + DEPTH >= right.depth;
        float *packed = kept(LEFT, LARGE_BLOCK * DEPTH + PANEL);
        left.pack(packed, row, height, k, depth);
        const int64_t steps = std::max<int64_t>(1, depth / PANEL), next_panel = depth * PANEL, lines_a_row = (depth + height - 1) / height;
        for (int64_t column = 0; column < right.columns; column += PANEL)
            tiles(0, height, [&](auto count, int64_t r) {
                float *corner = c + (row + r) * stride + column;
                const float *panel = panels + column * depth;
                // A core waits for a dozen lines or two at a time: called at once, a tile's rows would hold up its factors. So they
                // come one by one in the first half of the steps, and with them this tile's share of the next panel.
                const int64_t rows_a_step = 2 * count() <= steps ? 1 : (2 * count() + steps - 1) / steps;
                const int64_t from = r * lines_a_row, to = std::min(depth, (r + count()) * lines_a_row);
                const auto call = [&](int64_t step) ALWAYS_INLINE {
                    for (int64_t i = step * rows_a_step; i < std::min<int64_t>(count(), (step + 1) * rows_a_step); i++) {
                        __builtin_prefetch(corner + i * stride, 1);
                        if (last) finish.touch(row + r + i, column);
                    }
                    for (int64_t line = from + step; line < to; line += steps)
                        __builtin_prefetch(panel + next_panel + line * PANEL, 0, 2);
                };
                if (depth < PANEL) call(0);
                left.template tile<count()>(packed, r, panel, depth, [&](int i, int lane, Vector sum) {
                    float *place = corner + i * stride + lane;
                    if (begun) sum += load(place);
                    if constexpr (!Finish::AFTERWARDS)
                        if (last) sum = finish(column + lane, sum);
                    store(place, sum);
                }, call);
                if constexpr (Finish::AFTERWARDS)
                    if (last) finish.tile(corner, stride, row + r, column, count());
            });
    };
    if constexpr (Right::PACKED) {  // a block of C stays in L2 from pass to pass
        share_out(blocks, threads, [&](int64_t number) {
            for (int64_t k = 0; k < right.depth; k += DEPTH) multiply_block(number, k, right.pass(k));
        });
    } else {
        for (int64_t k = 0; k < right.depth; k += DEPTH) {
            const float *panels = right.pass(k);
            share_out(blocks, threads, [&](int64_t number) { multiply_block(number, k, panels); });
        }
    }
}

// dW [rows][columns] (+)= G^T X over `tokens`, and G's sums: of a weight and its bias. G's rows are `stride` apart, X's values come
// from value(token, column).
template <class Value>
void weight_gradient(float *dw, float *sums, const float *g, int64_t stride, int64_t rows, Value value, int64_t columns, int64_t tokens,
                     bool add, int64_t threads) {
    product(dw, columns, rows, ByColumns{g, stride, sums}, RightRows<Value>{value, tokens, columns, threads}, add, threads, Same());
}

}  // namespace
