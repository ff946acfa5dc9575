// One token more of several texts: a whole Transformer in one call, on a CPU.
//
// A token's pass over a small model takes less time than PyTorch needs to call its operators, and over a large one the time to read
// the weights. So there is one call, in phases for all threads (phases.h), that reads each weight once for all texts (weights.h).
// A prompt is read by the same code, several of its tokens at a time.
//
// A slot holds a text's keys and values: keys in panels of PANEL tokens, [head_dim][PANEL] each, so that a query meets many of them at
// once without sums across lanes; values as [token][head_dim].

#include "activations.h"
#include "phases.h"
#include "weights.h"

extern "C" {
struct Norm {  // weight null: none at all; bias null: no bias
    const float *weight, *bias;
};
struct Layer {
    Norm attention_norm, query_norm, key_norm, mlp_norm;
    Weight qkv, out, gate, up, down;  // qkv by groups [kv_head][queries of the group, key, value][head_dim]; gate.data null: none
    float *keys, *values;             // [slots][kv_heads][capacity][head_dim], as said above; capacity a multiple of PANEL
};
struct Decoder {
    const float *embedding, *position;  // [vocabulary][dim]; [context][dim], or null
    const float *cosine, *sine;         // [context][head_dim / 2], or null
    Norm embedding_norm, norm;
    Weight head;
    const Layer *layers;
    int64_t depth, dim, heads, kv_heads, head_dim, hidden, capacity;
    float epsilon;
    int32_t rms, activation;
};
struct Input {  // a token, and where it belongs
    int32_t token, slot, place;
};
}

namespace {

constexpr int64_t KEYS = 128;          // scores that exist at a time
constexpr int QUERIES = LANES / 4;     // heads that share the keys they read
constexpr int CHAINS = 4 / VECTORS;    // sums of a score, so that a multiply-add needn't wait for the last one
constexpr int64_t PHASES_A_LAYER = 7;

// What a pass writes between phases, a row for each token.
struct Room {
    float *stream, *normed, *qkv, *mixed, *inner, *gate, *added, *end;

    Room(const Decoder &model, int64_t tokens, float *from) : end(from) {
        const auto take = [&](int64_t width) { return (end += tokens * rounded(width)) - tokens * rounded(width); };
        stream = take(model.dim), normed = take(model.dim), added = take(model.dim);
        qkv = take((model.heads + 2 * model.kv_heads) * model.head_dim), mixed = take(model.heads * model.head_dim);
        inner = take(model.hidden), gate = take(model.hidden);
    }
};

void normalise(const Decoder &model, const Norm &norm, float *to, const float *from, int64_t width) {
    if (!norm.weight) {
        if (to != from) std::memcpy(to, from, sizeof(float) * width);
        return;
    }
    Vector sums{}, squares{};
    if (!model.rms)
        for (int64_t c = 0; c < width; c += LANES) sums += load(from + c);
    const float mean = total(sums) / float(width);
    for (int64_t c = 0; c < width; c += LANES) {
        const Vector centred = load(from + c) - mean;
        squares += centred * centred;
    }
    const float factor = 1 / std::sqrt(total(squares) / float(width) + model.epsilon);
    for (int64_t c = 0; c < width; c += LANES) {
        const Vector value = (load(from + c) - mean) * factor * load(norm.weight + c);
        store(to + c, norm.bias ? value + load(norm.bias + c) : value);
    }
}

// Turn each pair (i, i + width / 2) by its angle.
void rotate(float *x, const float *cosine, const float *sine, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cosine[i] - second * sine[i];
        x[i + half] = second * cosine[i] + first * sine[i];
    }
}

// What COUNT queries [COUNT][width], in powers of two, find in the first `length` keys and values; flash-style.
template <int COUNT>
void attend(float *out, const float *queries, const float *keys, const float *values, int64_t length, int64_t width) {
    alignas(64) float scores[COUNT][KEYS];
    float maximum[COUNT], sum[COUNT] = {};
    std::fill_n(maximum, COUNT, -INFINITY);
    std::memset(out, 0, sizeof(float) * COUNT * width);
    const Vector lanes = lane_numbers();
    for (int64_t from = 0; from < length; from += KEYS) {
        const int64_t count = std::min(KEYS, length - from);
        for (int64_t key = 0; key < count; key += PANEL) {
            const float *panel = keys + (from + key) * width;
            Vector sums[COUNT][CHAINS][VECTORS] = {};
            for (int64_t e = 0; e < width; e += CHAINS)
#pragma GCC unroll 4
                for (int chain = 0; chain < CHAINS; chain++)
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; v++) {
                        const Vector row = load(panel + (e + chain) * PANEL + v * LANES);
#pragma GCC unroll 4
                        for (int q = 0; q < COUNT; q++) sums[q][chain][v] += row * queries[q * width + e + chain];
                    }
            for (int q = 0; q < COUNT; q++)
                for (int v = 0; v < VECTORS; v++) {
                    Vector score{};
                    for (int chain = 0; chain < CHAINS; chain++) score += sums[q][chain][v];
                    const float left = float(count - key - v * LANES);  // what lies behind is another text's, or nothing
                    store(scores[q] + key + v * LANES, lanes < left ? score : all(-INFINITY));
                }
        }
        for (int q = 0; q < COUNT; q++) {
            Vector largest = all(maximum[q]), weights{};
            for (int64_t key = 0; key < count; key += LANES) largest = larger(largest, load(scores[q] + key));
            float highest = largest[0];
            for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, largest[lane]);
            for (int64_t key = 0; key < count; key += LANES) {
                const Vector weight = power_of_two(load(scores[q] + key) - highest);
                store(scores[q] + key, weight);
                weights += weight;
            }
            const float correction = std::exp2(maximum[q] - highest);
            sum[q] = sum[q] * correction + total(weights);
            maximum[q] = highest;
            if (correction != 1)
                for (int64_t e = 0; e < width; e += LANES) store(out + q * width + e, load(out + q * width + e) * correction);
        }
        tiles<4>(0, width / LANES, [&](auto vectors, int64_t column) {
            constexpr int WIDE = vectors();
            float *to = out + column * LANES;
            const float *value = values + from * width + column * LANES;
            Vector sums[COUNT][WIDE];
#pragma GCC unroll 4
            for (int q = 0; q < COUNT; q++)
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) sums[q][v] = load(to + q * width + v * LANES);
            for (int64_t key = 0; key < count; key++, value += width)
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) {
                    const Vector row = load(value + v * LANES);
#pragma GCC unroll 4
                    for (int q = 0; q < COUNT; q++) sums[q][v] += row * scores[q][key];
                }
#pragma GCC unroll 4
            for (int q = 0; q < COUNT; q++)
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) store(to + q * width + v * LANES, sums[q][v]);
        });
    }
    for (int q = 0; q < COUNT; q++)
        for (int64_t e = 0; e < width; e += LANES) store(out + q * width + e, load(out + q * width + e) / sum[q]);
}

// One pass of `tokens` tokens through the model, as one of `threads` threads that go the same way.
class Pass {
    const Decoder &model;
    const Input *inputs;
    const int64_t tokens, threads;
    const Room room;
    const int64_t group, qkv_width, mixed_width;

public:
    Pass(const Decoder &model, const Input *inputs, int64_t tokens, float *room, int64_t threads)
        : model(model), inputs(inputs), tokens(tokens), threads(threads), room(model, tokens, room),
          group(model.heads / model.kv_heads), qkv_width((model.heads + 2 * model.kv_heads) * model.head_dim),
          mixed_width(model.heads * model.head_dim) {}

    void operator()(Phases &phases, float *logits, int64_t told) const {
        Phases::Walk phase(phases);
        phase(tokens, [&](int64_t token) { embed(token); });
        for (const Layer *layer = model.layers; layer < model.layers + model.depth; layer++) {
            phase(tokens, [&](int64_t token) { norm(layer->attention_norm, token); });
            phase(layer->qkv.rows / model.head_dim, [&](int64_t head) { project_head(*layer, head); });
            phase(tokens * model.kv_heads, [&](int64_t item) { mix(*layer, item / model.kv_heads, item % model.kv_heads); });
            multiply(phase, layer->out, [&](int64_t begin, int64_t end) { add(layer->out, room.mixed, begin, end); });
            phase(tokens, [&](int64_t token) { norm(layer->mlp_norm, token); });
            multiply(phase, layer->up, [&](int64_t begin, int64_t end) { expand(*layer, begin, end); });
            multiply(phase, layer->down, [&](int64_t begin, int64_t end) { add(layer->down, room.inner, begin, end); });
        }
        if (!told) return;
        const int64_t first = tokens - told;
        phase(told, [&](int64_t token) { norm(model.norm, first + token); });
        multiply(phase, model.head, [&](int64_t begin, int64_t end) {
            dot_products(model.head, begin, end, room.normed + first * model.dim, told, logits, model.head.rows);
        });
    }

private:
    // Share out a weight's rows.
    template <class Work> void multiply(Phases::Walk &phase, const Weight &weight, Work work) const {
        const int64_t share = share_of_rows(weight, threads);
        phase((weight.rows + share - 1) / share,
              [&](int64_t item) { work(item * share, std::min(weight.rows, (item + 1) * share)); });
    }

    void embed(int64_t token) const {
        float *x = room.stream + token * model.dim;
        const Input &input = inputs[token];
        std::memcpy(x, model.embedding + input.token * model.dim, sizeof(float) * model.dim);
        if (model.position)
            for (int64_t c = 0; c < model.dim; c++) x[c] += model.position[input.place * model.dim + c];
        normalise(model, model.embedding_norm, x, x, model.dim);
    }

    void norm(const Norm &norm, int64_t token) const {
        normalise(model, norm, room.normed + token * model.dim, room.stream + token * model.dim, model.dim);
    }

    // One head of queries, keys or values, of all tokens; keys and values go to their slots.
    void project_head(const Layer &layer, int64_t head) const {
        const int64_t width = model.head_dim, kv_head = head / (group + 2), kind = head % (group + 2) - group;
        float *x = room.qkv + head * width;
        dot_products(layer.qkv, head * width, (head + 1) * width, room.normed, tokens, room.qkv, qkv_width);
        for (int64_t token = 0; token < tokens; token++, x += qkv_width) {
            const Input &input = inputs[token];
            const int64_t slot = (input.slot * model.kv_heads + kv_head) * model.capacity * width;
            if (kind == 1) {
                std::memcpy(layer.values + slot + input.place * width, x, sizeof(float) * width);
                continue;
            }
            normalise(model, kind ? layer.query_norm : layer.key_norm, x, x, width);
            if (model.cosine) rotate(x, model.cosine + input.place * (width / 2), model.sine + input.place * (width / 2), width);
            if (kind == 0) {
                float *key = layer.keys + slot + input.place / PANEL * PANEL * width + input.place % PANEL;
                for (int64_t e = 0; e < width; e++) key[e * PANEL] = x[e];
            } else {
                for (int64_t e = 0; e < width; e++) x[e] *= LOG2_E / std::sqrt(float(width));
            }
        }
    }

    void mix(const Layer &layer, int64_t token, int64_t kv_head) const {
        const int64_t width = model.head_dim, slot = (inputs[token].slot * model.kv_heads + kv_head) * model.capacity * width;
        const float *queries = room.qkv + token * qkv_width + kv_head * (group + 2) * width;
        float *out = room.mixed + token * mixed_width + kv_head * group * width;
        tiles<QUERIES>(0, group, [&](auto count, int64_t head) {
            attend<count()>(out + head * width, queries + head * width, layer.keys + slot, layer.values + slot, inputs[token].place + 1, width);
        });
    }

    // Rows of a weight, added to the residual stream.
    void add(const Weight &weight, const float *x, int64_t begin, int64_t end) const {
        dot_products(weight, begin, end, x, tokens, room.added, model.dim);
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t c = begin; c < end; c++) room.stream[token * model.dim + c] += room.added[token * model.dim + c];
    }

    // Up, and the gate, of some of the MLP's inner values.
    void expand(const Layer &layer, int64_t begin, int64_t end) const {
        dot_products(layer.up, begin, end, room.normed, tokens, room.inner, model.hidden);
        if (layer.gate.data) dot_products(layer.gate, begin, end, room.normed, tokens, room.gate, model.hidden);
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t c = token * model.hidden + begin; c < token * model.hidden + end; c += LANES) {
                const Vector up = load(room.inner + c);
                store(room.inner + c, layer.gate.data ? activate(load(room.gate + c), model.activation) * up : activate(up, model.activation));
            }
    }
};

}  // namespace

extern "C" {

// Floats that a pass of so many tokens needs to work in.
int64_t decode_room(const Decoder *model, int64_t tokens) { return Room(*model, tokens, nullptr).end - (float *)nullptr; }

// Put tokens into their slots: distinct places, and those before them filled or among them. logits [told][vocabulary] are of what
// follows the last `told` of them.
int decode(const Decoder *model, const Input *inputs, int64_t tokens, float *logits, int64_t told, float *room, int64_t threads) try {
    Phases phases(PHASES_A_LAYER * model->depth + 3);
    const Pass pass(*model, inputs, tokens, room, threads);
#pragma omp parallel num_threads(int(threads))
    pass(phases, logits, told);
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

}  // extern "C"
