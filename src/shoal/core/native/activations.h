// The nonlinearities of an MLP, and their slopes, on vectors.

#pragma once

#include "panels.h"

namespace {

enum Activation { GELU, SILU, SQUARED_RELU, GELU_ERF };

inline Vector sigmoid(Vector x) {
    const Vector exponent = x * -LOG2_E;  // up to 126: the reciprocal of what follows would be less than a float can be
    return exponent > 126.0f ? Vector{} : 1 / (1 + power_of_two(exponent));
}

constexpr float GELU_SLOPE = 1.5957691216f, GELU_CUBE = 0.044715f;  // 2 sqrt(2 / pi): tanh z = 2 sigmoid 2z - 1

// The normal distribution: `density` times sqrt(2 pi), and `below`, the share below x, from the share beyond |x|. That is the
// density times t P(t) with t = 1 / (1 + 0.21 |x|), P the minimax polynomial, whose largest relative error is 2e-8.
struct Normal {
    Vector density, below;
};

inline Normal normal(Vector x) {
    const Vector t = 1 / (1 + 0.21f * (x < 0 ? -x : x));
    const Vector density = power_of_two(x * x * (-0.5f * LOG2_E));
    Vector sum = all(-7.165619634e-02f);
    sum = sum * t + 2.835879987e-01f;
    sum = sum * t - 3.302521799e-01f;
    sum = sum * t + 3.493996066e-01f;
    sum = sum * t - 9.392422673e-02f;
    sum = sum * t + 1.248723068e-01f;
    sum = sum * t + 6.919227845e-02f;
    sum = sum * t + 8.506884259e-02f;
    sum = sum * t + 8.371157658e-02f;
    const Vector beyond = density * t * sum;
    return {density, x < 0 ? beyond : 1 - beyond};
}

constexpr float DENSITY = 0.3989422804f;  // 1 / sqrt(2 pi)

template <int32_t KIND> inline Vector activate(Vector x) {
    if (KIND == GELU_ERF) return x * normal(x).below;
    if (KIND == GELU) return x * sigmoid(GELU_SLOPE * (x + GELU_CUBE * x * x * x));
    if (KIND == SILU) return x * sigmoid(x);
    const Vector positive = x > 0 ? x : Vector{} * x;
    return positive * positive;
}

inline Vector activate(Vector x, int32_t kind) {
    if (kind == GELU) return activate<GELU>(x);
    if (kind == GELU_ERF) return activate<GELU_ERF>(x);
    return kind == SILU ? activate<SILU>(x) : activate<SQUARED_RELU>(x);
}

// The nonlinearity and its slope.
struct Slope {
    Vector value, slope;
};

template <int32_t KIND> inline Slope slope(Vector x) {
    if (KIND == GELU_ERF) {
        const Normal at = normal(x);
        return {x * at.below, at.below + x * at.density * DENSITY};
    }
    if (KIND == GELU) {
        const Vector s = sigmoid(GELU_SLOPE * (x + GELU_CUBE * x * x * x));
        return {x * s, s + x * s * (1 - s) * (GELU_SLOPE * (1 + 3 * GELU_CUBE * x * x))};
    }
    if (KIND == SILU) {
        const Vector s = sigmoid(x);
        return {x * s, s + x * s * (1 - s)};
    }
    const Vector positive = x > 0 ? x : Vector{} * x;
    return {positive * positive, 2 * positive};
}

}  // namespace
