// Codecs of gradients: numbers in blocks, each encoded to a record of fixed size; see parallel/codecs for the formats.
//
// The same bits as PyTorch's operations there give, so ranks may be of different kinds; hence no contraction to fused
// multiply-add, sums by halves, and true divisions. With feedback, values + decay x dropped is encoded, and what the records
// lack of it is kept in `dropped`, while the block is in L1: two reads and a write a number, where passes would take twelve.
// A call runs on the thread that makes it, a core being busy with the backward pass meanwhile.

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

namespace {

typedef uint32_t Bits __attribute__((may_alias));
constexpr uint32_t SIGN = 0x80000000u, INFINITE = 0x7f800000u;
constexpr uint16_t NOT_A_NUMBER = 0x7fc0;

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// bf16, to nearest, ties to even; `value` is a number.
inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t half) { return from_bits(uint32_t(half) << 16); }

inline void put(uint8_t *record, uint16_t half) { std::memcpy(record, &half, 2); }

inline uint16_t get(const uint8_t *record) {
    uint16_t half;
    std::memcpy(&half, record, 2);
    return half;
}

// The bits of the largest magnitude: those of what is not finite are larger than any number's.
template <int COUNT> inline uint32_t largest_magnitude(const float *values) {
    const Bits *bits = reinterpret_cast<const Bits *>(values);
    int32_t largest = 0;
    for (int i = 0; i < COUNT; i++) largest = std::max(largest, int32_t(bits[i] & ~SIGN));
    return uint32_t(largest);
}

// Bfloat16 of parallel/codecs/half.py.
struct Bfloat16 {
    static constexpr int BLOCK = 64;
    static int64_t record(int64_t) { return 2 * BLOCK; }

    static void pack(const float *values, uint8_t *record, int64_t, int64_t) {
        uint16_t halves[BLOCK];
        for (int i = 0; i < BLOCK; i++) halves[i] = values[i] == values[i] ? to_bf16(values[i]) : NOT_A_NUMBER;
        std::memcpy(record, halves, sizeof(halves));
    }

    static void unpack(const uint8_t *record, float *values, int64_t) {
        for (int i = 0; i < BLOCK; i++) values[i] = from_bf16(get(record + 2 * i));
    }
};

// Float16 of parallel/codecs/half.py.
struct Float16 {
    static constexpr int BLOCK = 256;
    static int64_t record(int64_t) { return 1 + 2 * BLOCK; }

    static void pack(const float *values, uint8_t *record, int64_t, int64_t) {
        const int exponent = int(largest_magnitude<BLOCK>(values) >> 23);
        if (exponent == 255) {
            record[0] = 255;
            std::memset(record + 1, 0, 2 * BLOCK);
            return;
        }
        const int power = std::max(1, exponent - 14);
        const float factor = from_bits(uint32_t(254 - power) << 23);
        uint16_t halves[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            const uint32_t bits = bits_of(values[i] * factor), magnitude = bits & ~SIGN;
            const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
            const uint32_t subnormal = bits_of(from_bits(magnitude) + 0.5f) - bits_of(0.5f);  // the sum rounds to 2^-24
            halves[i] = uint16_t((magnitude < 113u << 23 ? subnormal : normal) | bits >> 31 << 15);
        }
        record[0] = uint8_t(power);
        std::memcpy(record + 1, halves, sizeof(halves));
    }

    static void unpack(const uint8_t *record, float *values, int64_t) {
        const float power = from_bits(uint32_t(record[0]) << 23);
        for (int i = 0; i < BLOCK; i++) {
            const uint32_t half = get(record + 1 + 2 * i);
            const float magnitude = from_bits((half & 0x7fff) << 13) * from_bits(uint32_t(127 + 112) << 23);
            values[i] = from_bits(bits_of(magnitude) | half >> 15 << 31) * power;
        }
    }
};

// Integers.BITS of parallel/codecs/integers.py.
template <int BITS, int COUNT> struct Integers {
    static constexpr int BLOCK = COUNT, LIMIT = 1 << (BITS - 1), CODES = BLOCK * BITS / 8;
    static int64_t record(int64_t) { return 2 + CODES; }

    static void pack(const float *values, uint8_t *record, int64_t, int64_t) {
        const Bits *bits = reinterpret_cast<const Bits *>(values);
        const uint32_t largest = largest_magnitude<BLOCK>(values);
        if (largest >= INFINITE) return fill(record, NOT_A_NUMBER);
        int32_t positive = 0;
        for (int i = 0; i < BLOCK; i++) positive |= bits[i] == largest;
        const float extreme = from_bits(positive ? largest : largest | SIGN);
        const uint16_t half = to_bf16(extreme * float(-1.0 / LIMIT));
        const float step = from_bf16(half);
        if (step == 0) return fill(record, 0);
        put(record, half);
        int8_t codes[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            const float code = __builtin_rintf(values[i] / step);
            codes[i] = int8_t(int32_t(code < -LIMIT ? -LIMIT : code > LIMIT - 1 ? LIMIT - 1 : code));
        }
        if constexpr (BITS == 8)
            std::memcpy(record + 2, codes, CODES);
        else
            for (int i = 0; i < CODES; i++) record[2 + i] = uint8_t((codes[i] & 15) | codes[i + CODES] << 4);
    }

    static void unpack(const uint8_t *record, float *values, int64_t) {
        const float step = from_bf16(get(record));
        const int8_t *codes = reinterpret_cast<const int8_t *>(record + 2);
        if constexpr (BITS == 8)
            for (int i = 0; i < CODES; i++) values[i] = float(codes[i]) * step;
        else
            for (int i = 0; i < CODES; i++) {
                values[i] = float(int8_t(codes[i] << 4) >> 4) * step;
                values[i + CODES] = float(codes[i] >> 4) * step;
            }
    }

    static void fill(uint8_t *record, uint16_t half) {
        put(record, half);
        std::memset(record + 2, 0, CODES);
    }
};

template <int WIDTH> inline void halve(float *sums) {
    for (int i = 0; i < WIDTH; i++) sums[i] += sums[i + WIDTH];
    if constexpr (WIDTH > 1) halve<WIDTH / 2>(sums);
}

// The sum of magnitudes, by halves.
template <int COUNT> inline float sum_magnitudes(const float *values) {
    float sums[COUNT / 2];
    for (int i = 0; i < COUNT / 2; i++) sums[i] = std::fabs(values[i]) + std::fabs(values[i + COUNT / 2]);
    halve<COUNT / 4>(sums);
    return sums[0];
}

// Sign of parallel/codecs/sign.py.
struct Sign {
    static constexpr int BLOCK = 256;
    static int64_t record(int64_t) { return 2 + BLOCK / 8; }

    static void pack(const float *values, uint8_t *record, int64_t count, int64_t) {
        const bool finite = largest_magnitude<BLOCK>(values) < INFINITE;
        put(record, finite ? to_bf16(sum_magnitudes<BLOCK>(values) / float(count)) : NOT_A_NUMBER);
        const Bits *bits = reinterpret_cast<const Bits *>(values);
        for (int byte = 0; byte < BLOCK / 8; byte++) {
            uint32_t signs = 0;
            for (int i = 0; i < 8; i++) signs |= bits[8 * byte + i] >> 31 << i;
            record[2 + byte] = uint8_t(signs);
        }
    }

    static void unpack(const uint8_t *record, float *values, int64_t) {
        const uint32_t scale = uint32_t(get(record)) << 16;
        Bits *bits = reinterpret_cast<Bits *>(values);
        for (int byte = 0; byte < BLOCK / 8; byte++) {
            const uint32_t signs = record[2 + byte];
            for (int i = 0; i < 8; i++) bits[8 * byte + i] = (signs << (31 - i) & SIGN) | scale;
        }
    }
};

// TwoBit of parallel/codecs/two_bit.py.
struct TwoBit {
    static constexpr int BLOCK = 256, BYTES = BLOCK / 8;
    static int64_t record(int64_t) { return 4 + 2 * BYTES; }

    static void pack(const float *values, uint8_t *record, int64_t count, int64_t) {
        const Bits *bits = reinterpret_cast<const Bits *>(values);
        const float threshold = sum_magnitudes<BLOCK>(values) / float(count) * 1.25f;
        float low[BLOCK], high[BLOCK];
        int32_t highs = 0;
        for (int i = 0; i < BLOCK; i++) {
            const float magnitude = std::fabs(values[i]);
            const bool above = magnitude > threshold;
            low[i] = above ? 0 : magnitude;
            high[i] = above ? magnitude : 0;
            highs += above;
        }
        const bool finite = largest_magnitude<BLOCK>(values) < INFINITE;
        put(record, finite ? to_bf16(sum_magnitudes<BLOCK>(low) / float(count - highs)) : NOT_A_NUMBER);
        put(record + 2, finite ? to_bf16(sum_magnitudes<BLOCK>(high) / float(std::max(highs, 1))) : NOT_A_NUMBER);
        for (int byte = 0; byte < BYTES; byte++) {
            uint32_t signs = 0, sizes = 0;
            for (int i = 0; i < 8; i++) {
                signs |= bits[8 * byte + i] >> 31 << i;
                sizes |= uint32_t(high[8 * byte + i] > 0) << i;
            }
            record[4 + byte] = uint8_t(signs);
            record[4 + BYTES + byte] = uint8_t(sizes);
        }
    }

    static void unpack(const uint8_t *record, float *values, int64_t) {
        const uint32_t low = uint32_t(get(record)) << 16, change = low ^ uint32_t(get(record + 2)) << 16;
        Bits *bits = reinterpret_cast<Bits *>(values);
        for (int byte = 0; byte < BYTES; byte++) {
            const uint32_t signs = record[4 + byte], sizes = record[4 + BYTES + byte];
            for (int i = 0; i < 8; i++)
                bits[8 * byte + i] = (signs << (31 - i) & SIGN) | (low ^ (change & -(sizes >> i & 1)));
        }
    }
};

// TopK of parallel/codecs/topk.py.
struct TopK {
    static constexpr int BLOCK = 4096, SHIFT = 20;  // bins: the exponent and three bits of the mantissa
    static int64_t record(int64_t keep) { return 4 + (3 * keep + 1) / 2 + (keep + 3) / 4; }

    static void pack(const float *values, uint8_t *record_, int64_t, int64_t keep) {
        const Bits *bits = reinterpret_cast<const Bits *>(values);
        std::memset(record_, 0, record(keep));
        uint16_t chosen[BLOCK];
        const uint32_t largest = largest_magnitude<BLOCK>(values);
        if (largest >= INFINITE) {
            put(record_, NOT_A_NUMBER), put(record_ + 2, NOT_A_NUMBER);
            for (int64_t i = 0; i < keep; i++) chosen[i] = uint16_t(i);
            return put_indices(record_ + 4, chosen, keep);
        }
        choose(bits, largest, keep, chosen);
        float magnitudes[BLOCK];
        for (int64_t i = 0; i < keep; i++) magnitudes[i] = std::fabs(values[chosen[i]]);
        std::sort(magnitudes, magnitudes + keep, std::greater<float>());
        double total = 0, sum = 0, best = -1, best_sum = 0;
        int64_t split = 0;
        for (int64_t i = 0; i < keep; i++) total += magnitudes[i];
        for (int64_t i = 1; i <= keep; i++) {
            sum += magnitudes[i - 1];
            const double rest = total - sum, gain = sum * sum / double(i) + rest * rest / double(std::max<int64_t>(keep - i, 1));
            if (gain > best) best = gain, best_sum = sum, split = i;
        }
        put(record_, to_bf16(float((total - best_sum) / double(std::max<int64_t>(keep - split, 1)))));
        put(record_ + 2, to_bf16(float(best_sum / double(split))));
        put_indices(record_ + 4, chosen, keep);
        uint8_t *codes = record_ + 4 + (3 * keep + 1) / 2;
        for (int64_t i = 0; i < keep; i++) {
            const float value = values[chosen[i]];
            const int code = int(bits[chosen[i]] >> 31) | (std::fabs(value) >= magnitudes[split - 1] ? 2 : 0);
            codes[i / 4] |= uint8_t(code << 2 * (i % 4));
        }
    }

    // The places of the `keep` largest magnitudes, in order; of equal ones the first.
    static void choose(const Bits *bits, uint32_t largest, int64_t keep, uint16_t *chosen) {
        uint16_t counts[INFINITE >> SHIFT] = {};
        for (int i = 0; i < BLOCK; i++) counts[(bits[i] & ~SIGN) >> SHIFT]++;
        uint32_t bin = largest >> SHIFT;
        for (int64_t above = counts[bin]; above < keep; above += counts[bin]) bin--;
        int64_t count = 0;
        uint16_t candidates[BLOCK + 1];
        for (int i = 0; i < BLOCK; i++) {
            candidates[count] = uint16_t(i);
            count += (bits[i] & ~SIGN) >= bin << SHIFT;
        }
        uint32_t magnitudes[BLOCK];
        for (int64_t i = 0; i < count; i++) magnitudes[i] = bits[candidates[i]] & ~SIGN;
        std::nth_element(magnitudes, magnitudes + keep - 1, magnitudes + count, std::greater<uint32_t>());
        const uint32_t least = magnitudes[keep - 1];
        int64_t equal = keep;  // how many of the least may come along
        for (int64_t i = 0; i < keep; i++) equal -= magnitudes[i] > least;
        for (int64_t i = 0, taken = 0; taken < keep; i++) {
            const uint32_t magnitude = bits[candidates[i]] & ~SIGN;
            if (magnitude > least || (magnitude == least && equal-- > 0)) chosen[taken++] = candidates[i];
        }
    }

    static void put_indices(uint8_t *to, const uint16_t *indices, int64_t keep) {
        for (int64_t i = 0; i < keep; i += 2, to += 3) {
            const uint32_t second = i + 1 < keep ? indices[i + 1] : 0;
            to[0] = uint8_t(indices[i]);
            to[1] = uint8_t(indices[i] >> 8 | second << 4);
            if (i + 1 < keep) to[2] = uint8_t(second >> 4);
        }
    }

    static void unpack(const uint8_t *record, float *values, int64_t keep) {
        const float levels[2] = {from_bf16(get(record)), from_bf16(get(record + 2))};
        std::fill_n(values, BLOCK, 0 * levels[0]);  // not a number where that is none
        const uint8_t *indices = record + 4, *codes = indices + (3 * keep + 1) / 2;
        for (int64_t i = 0; i < keep; i++) {
            const uint8_t *place = indices + i / 2 * 3 + i % 2;
            const int index = i % 2 ? place[0] >> 4 | place[1] << 4 : place[0] | (place[1] & 15) << 8;
            const int code = codes[i / 4] >> 2 * (i % 4);
            values[index] = code & 1 ? -levels[code >> 1 & 1] : levels[code >> 1 & 1];
        }
    }
};

template <class Format>
int encode(const float *values, float *dropped, float decay, uint8_t *payload, int64_t length, int64_t keep) {
    constexpr int BLOCK = Format::BLOCK;
    const int64_t record = Format::record(keep);
    float wanted[BLOCK], got[BLOCK];
    for (int64_t begin = 0; begin < length; begin += BLOCK, payload += record) {
        const int64_t count = std::min<int64_t>(BLOCK, length - begin);
        if (!dropped && count == BLOCK) {
            Format::pack(values + begin, payload, count, keep);
            continue;
        }
        std::memcpy(wanted, values + begin, sizeof(float) * count);
        if (count < BLOCK) std::memset(wanted + count, 0, sizeof(float) * (BLOCK - count));
        if (dropped)
            for (int64_t i = 0; i < count; i++) wanted[i] += decay * dropped[begin + i];
        Format::pack(wanted, payload, count, keep);
        if (!dropped) continue;
        Format::unpack(payload, got, keep);
        float *kept = dropped + begin;
        for (int64_t i = 0; i < count; i++) {
            const float error = wanted[i] - got[i];
            kept[i] = std::fabs(error) < std::numeric_limits<float>::infinity() ? error : kept[i];
        }
    }
    return 0;
}

template <class Format> int decode(const uint8_t *payload, float *values, int64_t length, int64_t add, int64_t keep) {
    constexpr int BLOCK = Format::BLOCK;
    const int64_t record = Format::record(keep);
    float got[BLOCK];
    for (int64_t begin = 0; begin < length; begin += BLOCK, payload += record) {
        const int64_t count = std::min<int64_t>(BLOCK, length - begin);
        if (!add && count == BLOCK) {
            Format::unpack(payload, values + begin, keep);
            continue;
        }
        Format::unpack(payload, got, keep);
        if (add)
            for (int64_t i = 0; i < count; i++) values[begin + i] += got[i];
        else
            std::memcpy(values + begin, got, sizeof(float) * count);
    }
    return 0;
}

}  // namespace

// encode_FORMAT: fill `payload` from values [length], plus decay x dropped where that is not null; `keep` matters to top-k alone.
// decode_FORMAT: fill, or add to, values [length]. Both always return 0.
#define FORMAT(NAME, ...)                                                                                                     \
    extern "C" int encode_##NAME(const float *values, float *dropped, float decay, uint8_t *payload, int64_t length,          \
                                 int64_t keep, int64_t) {                                                                     \
        return encode<__VA_ARGS__>(values, dropped, decay, payload, length, keep);                                            \
    }                                                                                                                         \
    extern "C" int decode_##NAME(const uint8_t *payload, float *values, int64_t length, int64_t add, int64_t keep, int64_t) { \
        return decode<__VA_ARGS__>(payload, values, length, add, keep);                                                       \
    }

FORMAT(bf16, Bfloat16)
FORMAT(fp16, Float16)
FORMAT(int8, Integers<8, 128>)
FORMAT(int4, Integers<4, 64>)
FORMAT(sign, Sign)
FORMAT(two_bit, TwoBit)
FORMAT(topk, TopK)
