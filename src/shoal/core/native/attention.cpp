// Self-attention in fp32 and its gradients, the (batch, key-value head) items divided among OpenMP's threads.
//
// Each token sees an interval of keys, itself among them; without `high` it ends there (causal), and nothing above the
// diagonal is computed. Flash-style (Dao et al. 2022): blocks of queries against those blocks of keys that any of them
// sees, so that the T x T scores never leave the L2 cache, and the backward recomputes them from the saved log-sum-exp. All seven matrix products are
// one micro-kernel, an outer product that keeps ROWS x 16 sums in registers: broadcast a, load b, multiply and add.
// Only keys and, for the gradient, values are needed transposed as well.
//
// Base 2: queries are packed times scale x log2(e), hence scores, and the saved log-sum-exp, count in powers of two.

#include "panels.h"

constexpr int QUERIES = 64, KEYS = 128;  // a block's: 64 KiB of scores and their gradients; 48 to 256 are as fast

extern "C" {
struct View {  // [batch, head, token, width], the width contiguous
    float *data;
    int64_t batch, head, token;
};
struct Sizes {
    int64_t heads, kv_heads, tokens, width;
    float scale;
};
struct Reach {  // [batch, tokens]: a token sees keys low to high, itself among them; null: from the first, to itself
    const int32_t *low, *high;
};
}

namespace {

// What the tokens of one sequence see.
struct Seen {
    const int32_t *low, *high;

    Seen(const Reach &reach, int64_t batch, int64_t tokens)
        : low(reach.low ? reach.low + batch * tokens : nullptr), high(reach.high ? reach.high + batch * tokens : nullptr) {}

    bool causal() const { return !high; }
    int64_t begin(int64_t token) const { return low ? low[token] : 0; }
    int64_t end(int64_t token) const { return high ? high[token] : token + 1; }
    // the first and the last that any of these queries sees
    int64_t begin(int64_t query, int64_t queries) const { return low ? *std::min_element(low + query, low + query + queries) : 0; }
    int64_t end(int64_t query, int64_t queries) const {
        return high ? *std::max_element(high + query, high + query + queries) : query + queries;
    }
};

// One block of scores: queries [query, query + queries) against keys [key, key + keys), key a multiple of PANEL.
struct Block {
    int64_t query, queries, key, keys;
    bool causal;

    // Those keys from `key` to before `key_end` that any of the queries sees, KEYS at most: none where keys is not above 0.
    Block(const Seen &seen, int64_t tokens, int64_t query, int64_t key, int64_t key_end)
        : query(query), queries(std::min<int64_t>(QUERIES, tokens - query)),
          key(std::max(key, seen.begin(query, queries) / PANEL * PANEL)),
          keys(std::min<int64_t>(KEYS, std::min(key_end, seen.end(query, queries)) - this->key)), causal(seen.causal()) {}

    int64_t first_query(int64_t k) const { return causal ? std::max<int64_t>(0, key + k - query) : 0; }
    int64_t keys_seen(int64_t q) const { return causal ? std::min(keys, query + q - key + 1) : keys; }

    // Call finish(scores' row, query, key, sum) for the product of a's rows and b's panels, at and below the diagonal.
    template <class Finish>
    void products(float *scores, const float *a, int64_t a_panel, const float *b, int64_t depth, Finish finish) const {
        for (int64_t k = 0; k < keys; k += PANEL, scores += QUERIES * PANEL, b += depth * PANEL) {
            const int64_t first = first_query(k), above = std::max<int64_t>(0, first - ROWS + 1);
            // A tile of rows that crosses the diagonal reads, as its depth, a little above it.
            std::memset(scores + above * PANEL, 0, sizeof(float) * (first - above) * PANEL);
            tiles(first, queries, [&](auto count, int64_t row) {
                multiply<count()>(a + row * PANEL, b, depth, a_panel, [&](int r, int lane, Vector sum) {
                    finish(scores + (row + r) * PANEL + lane, row + r, k + lane, sum);
                });
            });
        }
    }

    // Call finish(query, column, sum) for scores times the panels of b.
    template <class Finish>
    void times(const float *scores, const float *b, int64_t b_panel, int64_t width, Finish finish) const {
        for (int64_t column = 0; column < width; column += PANEL, b += b_panel)
            tiles(0, queries, [&](auto count, int64_t row) {
                multiply<count()>(scores + row * PANEL, b, keys_seen(row + count() - 1), QUERIES * PANEL,
                                  [&](int r, int lane, Vector sum) { finish(row + r, column + lane, sum); });
            });
    }

    // Add scores transposed times the panels of b to those of `to`.
    void transposed_times(const float *scores, const float *b, int64_t panel, int64_t width, float *to) const {
        for (int64_t k = 0; k < keys; k += PANEL, scores += QUERIES * PANEL)
            for (int64_t column = 0; column < width; column += PANEL)
                tiles(0, std::min<int64_t>(PANEL, keys - k), [&](auto count, int64_t row) {
                    const int64_t first = first_query(k + row);
                    const float *factor = b + column / PANEL * panel + first * PANEL;
                    float *target = to + column / PANEL * panel + (k + row) * PANEL;
                    multiply<count(), PANEL>(scores + first * PANEL + row, factor, queries - first, PANEL * PANEL, [&](int r, int lane, Vector sum) {
                        float *place = target + r * PANEL + lane;
                        store(place, load(place) + sum);
                    });
                });
    }
};

// One row of scores to exp2(score - maximum) from key `begin` to `end`, zero in the rest of `keys`; updates the row's running
// maximum and sum and returns what the sums so far must be multiplied by.
float softmax_row(float *row, int64_t begin, int64_t end, int64_t keys, float &maximum, float &sum) {
    const Vector lanes = lane_numbers();
    Vector largest = all(-INFINITY), total{};
    for (int64_t k = begin / LANES * LANES; k < end; k += LANES) {
        float *place = row + (k / PANEL) * QUERIES * PANEL + k % PANEL;
        Vector score = load(place);
        if (k + LANES > end) store(place, score = lanes < float(end - k) ? score : all(-INFINITY));
        if (k < begin) store(place, score = lanes < float(begin - k) ? all(-INFINITY) : score);
        largest = larger(largest, score);
    }
    float highest = maximum;
    for (int lane = 0; lane < LANES; lane++) highest = largest[lane] > highest ? largest[lane] : highest;
    for (int64_t k = 0; k < rounded(keys); k += LANES) {
        float *place = row + (k / PANEL) * QUERIES * PANEL + k % PANEL;
        const Vector weight = k + LANES > begin && k < end ? power_of_two(load(place) - highest) : Vector{};
        store(place, weight);
        total += weight;
    }
    if (begin >= end) return 1;
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
static int forward_items(const View *q, const View *k, const View *v, const View *out, float *logsumexp, const Reach *reach,
                         const Sizes *sizes, int64_t begin, int64_t end) {
    const int64_t tokens = sizes->tokens, width = sizes->width, depth = rounded(width);
    const int64_t group = sizes->heads / sizes->kv_heads;
    Scratch scratch((rounded(tokens) + tokens + 2 * QUERIES) * depth + QUERIES * KEYS);
    if (!scratch.data) return 1;
    float *keys = scratch.take(rounded(tokens) * depth), *values = scratch.take(tokens * depth);
    float *queries = scratch.take(QUERIES * depth), *sums = scratch.take(QUERIES * depth);
    float *scores = scratch.take(QUERIES * KEYS);
    for (int64_t item = begin; item < end; item++) {
        const int64_t batch = item / sizes->kv_heads, kv_head = item % sizes->kv_heads;
        const Seen seen(*reach, batch, tokens);
        pack_transposed(keys, at(*k, batch, kv_head, 0), k->token, tokens, width);
        pack(values, at(*v, batch, kv_head, 0), v->token, tokens, width, 1);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t query = 0; query < tokens; query += QUERIES) {
                const int64_t rows = std::min<int64_t>(QUERIES, tokens - query);
                float maximum[QUERIES], sum[QUERIES], correction[QUERIES];
                std::fill_n(maximum, QUERIES, -INFINITY);
                std::fill_n(sum, QUERIES, 0.0f);
                pack(queries, at(*q, batch, head, query), q->token, rows, width, sizes->scale * LOG2_E);
                const int64_t first = seen.begin(query, rows) / PANEL * PANEL, last = seen.end(query, rows);
                for (int64_t key = first; key < last; key += KEYS) {
                    const Block block(seen, tokens, query, key, last);
                    block.products(scores, queries, rows * PANEL, keys + key * depth, depth,
                                   [](float *place, int64_t, int64_t, Vector score) { store(place, score); });
                    for (int64_t row = 0; row < rows; row++) {
                        const int64_t from = std::max<int64_t>(0, seen.begin(query + row) - key);
                        const int64_t to = std::min(block.keys, seen.end(query + row) - key);
                        correction[row] =
                            softmax_row(scores + row * PANEL, from, to, block.keys_seen(row), maximum[row], sum[row]);
                    }
                    block.times(scores, values + key * PANEL, tokens * PANEL, depth, [&](int64_t row, int64_t column, Vector value) {
                        float *place = sums + (column / PANEL) * QUERIES * PANEL + row * PANEL + column % PANEL;
                        store(place, key > first ? load(place) * correction[row] + value : value);
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
                       const View *dk, const View *dv, const float *logsumexp, const Reach *reach, const Sizes *sizes,
                       int64_t begin, int64_t end) {
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
        const Seen seen(*reach, batch, tokens);
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
            for (int64_t begin_key = 0; begin_key < tokens; begin_key += KEYS)
                for (int64_t query = seen.causal() ? begin_key : 0; query < tokens; query += QUERIES) {
                    const Block block(seen, tokens, query, begin_key, begin_key + KEYS);
                    const int64_t key = block.key;
                    if (block.keys <= 0) continue;
                    block.products(weights, queries + query * PANEL, panel, key_columns + key * depth, depth,
                                   [&](float *place, int64_t row, int64_t column, Vector score) {
                                       const Vector weight = power_of_two(score - row_logsumexp[query + row]);
                                       const int64_t here = key + column;
                                       const int64_t from = seen.begin(query + row) - here, to = seen.end(query + row) - here;
                                       Vector kept = to < LANES ? (lanes < float(to) ? weight : Vector{}) : weight;
                                       store(place, from > 0 ? (lanes < float(from) ? Vector{} : kept) : kept);
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
    threads = std::max<int64_t>(1, std::min(threads, items));
#pragma omp parallel for num_threads(int(threads)) schedule(static) reduction(| : failed)
    for (int64_t part = 0; part < threads; part++) failed |= work(items * part / threads, items * (part + 1) / threads);
    return failed;
}

// Both return 0, or 1 when there is no memory for the blocks.
extern "C" {

int attention_forward(const View *q, const View *k, const View *v, const View *out, float *logsumexp, const Reach *reach,
                      const Sizes *sizes, int64_t items, int64_t threads) {
    return in_parts(items, threads, [&](int64_t begin, int64_t end) {
        return forward_items(q, k, v, out, logsumexp, reach, sizes, begin, end);
    });
}

int attention_backward(const View *q, const View *k, const View *v, const View *out, const View *dout, const View *dq,
                       const View *dk, const View *dv, const float *logsumexp, const Reach *reach, const Sizes *sizes,
                       int64_t items, int64_t threads) {
    return in_parts(items, threads, [&](int64_t begin, int64_t end) {
        return backward_items(q, k, v, out, dout, dq, dk, dv, logsumexp, reach, sizes, begin, end);
    });
}

}  // extern "C"
