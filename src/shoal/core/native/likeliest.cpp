// The likeliest token of each row of logits.

#include <cfloat>
#include <cstdint>
#include <limits>

namespace {

constexpr int64_t BLOCK = 256;

int32_t likeliest_of(const float *logits, int64_t vocabulary) {
    float best = -std::numeric_limits<float>::infinity();
    int64_t from = 0;
    int strange = 0;
    for (int64_t begin = 0; begin < vocabulary; begin += BLOCK) {
        const int64_t end = begin + BLOCK < vocabulary ? begin + BLOCK : vocabulary;
        float most = best;
#pragma omp simd reduction(max : most) reduction(+ : strange)
        for (int64_t token = begin; token < end; token++) {
            most = logits[token] > most ? logits[token] : most;
            strange += !(logits[token] <= FLT_MAX);  // infinite, or no number
        }
        if (most > best) {
            best = most;
            from = begin;
        }
    }
    if (strange || best < -FLT_MAX) return -1;
    while (logits[from] != best) from++;
    return int32_t(from);
}

}  // namespace

extern "C" {

// Of `rows` of logits [vocabulary], so far apart: the first token whose logit is the largest; -1 where that is no finite number, or
// some logit is none.
int likeliest(const float *logits, int64_t rows, int64_t apart, int64_t vocabulary, int32_t *tokens) {
    for (int64_t row = 0; row < rows; row++) tokens[row] = likeliest_of(logits + row * apart, vocabulary);
    return 0;
}

}  // extern "C"
