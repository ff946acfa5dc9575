// Dropout whose mask is computed anew wherever it is needed: a number's place and a seed tell whether it is kept.

#include <cstdint>

namespace {

// Each bit of the result depends on each of the number, to within chance (Wellons 2018, "Prospecting for hash functions").
inline uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

}  // namespace

extern "C" {

// y = x * scale where kept, which is where a number of 32 random bits is not below `least`; else x * 0. The same bits on any
// number of threads.
int dropout(float *y, const float *x, int64_t count, const int64_t *seed, uint32_t least, float scale, int64_t threads) {
    constexpr int64_t CHUNK = 4096;
    const uint64_t bits = uint64_t(*seed);
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t start = 0; start < count; start += CHUNK) {
        const int64_t size = count - start < CHUNK ? count - start : CHUNK;
        // a stream a chunk: places within it are few, and chunks many
        const uint32_t stream = mixed(mixed(uint32_t(bits)) ^ uint32_t(start / CHUNK)) ^ uint32_t(bits >> 32);
        for (int64_t i = 0; i < size; i++)
            y[start + i] = x[start + i] * (mixed(uint32_t(i) ^ stream) < least ? 0.0f : scale);
    }
    return 0;
}

}  // extern "C"
