// The cross entropy of a projection onto the vocabulary, and its gradients, without all of its logits.
//
// Logits exist for some hundred tokens at a time, in the L3 cache, and become their own gradient in place.

#include <vector>

#include "product.h"

namespace {

// What is minimised: `smoothing` of the target's probability is spread over all words, and `z` times log^2 Z is added, where Z
// is the softmax's denominator.
struct Softening {
    float smoothing, z;
};

// One row of logits, `count` of them and then room to a whole panel, to softmax - onehot, softened; returns the loss.
// A row that doesn't count becomes zeros.
inline float to_gradient(float *row, int64_t count, int64_t target, bool wanted, Softening soft) {
    const int64_t padded = rounded(count);
    if (target < 0) {
        std::memset(row, 0, sizeof(float) * padded);
        return 0;
    }
    const float logit = row[target];
    float mean = 0;
    if (soft.smoothing) {
        for (int64_t c = count; c < padded; c++) row[c] = 0;
        Vector sum[2] = {};
        for (int64_t c = 0; c < padded; c += PANEL)
            for (int v = 0; v < VECTORS; v++) sum[v % 2] += load(row + c + v * LANES);
        mean = (sum_of(sum[0]) + sum_of(sum[1])) / count;
    }
    for (int64_t c = count; c < padded; c++) row[c] = -INFINITY;
    Vector largest[2] = {all(-INFINITY), all(-INFINITY)};
    for (int64_t c = 0; c < padded; c += PANEL)
        for (int v = 0; v < VECTORS; v++) largest[v % 2] = larger(largest[v % 2], load(row + c + v * LANES));
    float highest = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) {
        const float one = larger(largest[0], largest[1])[lane];
        highest = one > highest ? one : highest;
    }
    Vector total[2] = {};
    for (int64_t c = 0; c < padded; c += PANEL)
        for (int v = 0; v < VECTORS; v++) {
            float *place = row + c + v * LANES;
            const Vector weight = power_of_two((load(place) - highest) * LOG2_E);
            store(place, weight);
            total[v % 2] += weight;
        }
    const float sum = sum_of(total[0]) + sum_of(total[1]);
    const float log_z = highest + std::log(sum);
    if (wanted) {
        const Vector factor = all((1 + 2 * soft.z * log_z) / sum), share = all(soft.smoothing / count);
        for (int64_t c = 0; c < padded; c += LANES) store(row + c, load(row + c) * factor - share);
        row[target] -= 1 - soft.smoothing;
        for (int64_t c = count; c < padded; c++) row[c] = 0;
    }
    const float spread = soft.smoothing ? soft.smoothing * (logit - mean) : 0;
    return highest - logit + std::log(sum) + spread + (soft.z ? soft.z * log_z * log_z : 0);
}

}  // namespace

extern "C" {

// losses [tokens] of x [tokens][width] projected by weight [vocabulary][width] and bias [vocabulary] (or none) against targets
// (negative: not counted); with dx [tokens][width], dw [vocabulary][width] and dbias [vocabulary], the gradients of their sum;
// softened. Returns 1 when there is no memory.
int cross_entropy(float *losses, float *dx, float *dw, float *dbias, const float *x, const float *weight, const float *bias,
                  const int64_t *targets, int64_t tokens, int64_t vocabulary, int64_t width, int64_t together, float smoothing, float z,
                  int64_t threads) {
    try {
        const int64_t padded = rounded(vocabulary);
        float *logits = kept(LOGITS, std::min(together, tokens) * padded);
        std::vector<float> sums(dbias ? vocabulary : 0);
        const RightPacked columns(PROJECTION_COLUMNS, RightColumns{weight, width, vocabulary, threads});
        const RightPacked by_rows = dx ? RightPacked(PROJECTION, RightRows<Plain>{{weight, width}, vocabulary, width, threads}) : columns;
        for (int64_t from = 0; from < tokens; from += together) {
            const int64_t part = std::min(together, tokens - from);
            const float *input = x + from * width;
            product(logits, padded, part, ByRows<Plain>{{input, width}}, columns, false, threads, Same());
            share_out(part, threads, [&](int64_t row) {
                float *its = logits + row * padded;
                if (bias)
                    for (int64_t c = 0; c < vocabulary; c++) its[c] += bias[c];
                losses[from + row] = to_gradient(its, vocabulary, targets[from + row], dx != nullptr, {smoothing, z});
            });
            if (!dx) continue;
            product(dx + from * width, width, part, ByRows<Plain>{{logits, padded}}, by_rows, false, threads, Same());
            weight_gradient(dw, dbias ? sums.data() : nullptr, logits, padded, vocabulary, Plain{input, width}, width, part, from > 0, threads);
            for (size_t c = 0; c < sums.size(); c++) dbias[c] = (from ? dbias[c] : 0) + sums[c];
        }
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}  // extern "C"
