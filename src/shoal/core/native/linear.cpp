// Linear maps and the Transformer's MLP in fp32, forward and gradients.
//
// The MLP keeps its inner values as they are before the nonlinearity and computes the nonlinearity while it packs them for the
// next product, in the forward and again in the backward: at four times the width, writing and reading the activated
// values would take longer than computing them twice, and would be the largest thing that a block keeps.

#include "activations.h"
#include "product.h"

extern "C" {
struct Linear {  // weight [columns][width], bias [columns] or none
    const float *weight, *bias;
    float *weight_gradient, *bias_gradient;  // none where they are not learnt
    int64_t columns, width;
};
struct Mlp {  // down(act(up x)), or down(act(gate x) * up x) where there is a gate
    Linear up, gate, down;
    int32_t activation;
    float *inner_up, *inner_gate;  // [tokens][hidden], before the nonlinearity
};
}

namespace {

// What goes into `down`.
struct Activated {
    const Mlp *mlp;

    Vector operator()(int64_t token, int64_t column) const {
        const int64_t place = token * mlp->up.columns + column;
        const Vector up = load(mlp->inner_up + place);
        if (!mlp->inner_gate) return activate(up, mlp->activation);
        return activate(load(mlp->inner_gate + place), mlp->activation) * up;
    }
};

// The gradient of what goes into `down` becomes that of what it was made of.
struct Through {
    static constexpr bool AFTERWARDS = true;
    const Mlp *mlp;
    float *dgate;

    void touch(int64_t token, int64_t column) const {
        const int64_t place = token * mlp->up.columns + column;
        __builtin_prefetch(mlp->inner_up + place, 0, 2);
        if (!mlp->inner_gate) return;
        __builtin_prefetch(mlp->inner_gate + place, 0, 2);
        __builtin_prefetch(dgate + place, 1);
    }
    void tile(float *corner, int64_t stride, int64_t token, int64_t column, int count) const {
        if (mlp->activation == GELU) return tile_of<GELU>(corner, stride, token, column, count);
        if (mlp->activation == GELU_ERF) return tile_of<GELU_ERF>(corner, stride, token, column, count);
        if (mlp->activation == SILU) return tile_of<SILU>(corner, stride, token, column, count);
        tile_of<SQUARED_RELU>(corner, stride, token, column, count);
    }
    template <int32_t KIND> void tile_of(float *corner, int64_t stride, int64_t token, int64_t column, int count) const {
        for (int i = 0; i < count; i++)
            for (int lane = 0; lane < PANEL; lane += LANES) {
                const int64_t place = (token + i) * mlp->up.columns + column + lane;
                float *gradient = corner + i * stride + lane;
                const Vector up = load(mlp->inner_up + place);
                if (!mlp->inner_gate) {
                    store(gradient, load(gradient) * slope<KIND>(up).slope);
                    continue;
                }
                const Slope gate = slope<KIND>(load(mlp->inner_gate + place));
                store(dgate + place, load(gradient) * up * gate.slope);
                store(gradient, load(gradient) * gate.value);
            }
    }
};

struct Biased {
    static constexpr bool AFTERWARDS = false;
    const float *bias;
    void touch(int64_t, int64_t) const {}
    Vector operator()(int64_t column, Vector sum) const { return sum + load(bias + column); }
};

template <class Value> void forward(const Linear &linear, float *y, Value value, int64_t tokens, int64_t threads) {
    const RightPacked right(RIGHT, RightColumns{linear.weight, linear.width, linear.columns, threads});
    if (linear.bias)
        product(y, linear.columns, tokens, ByRows<Value>{value}, right, false, threads, Biased{linear.bias});
    else
        product(y, linear.columns, tokens, ByRows<Value>{value}, right, false, threads, Same());
}

inline RightPacked weight_rows(const Linear &linear, int64_t threads) {
    return RightPacked(RIGHT, RightRows<Plain>{{linear.weight, linear.width}, linear.columns, linear.width, threads});
}

void input_gradient(const Linear &linear, float *dx, const float *dy, int64_t tokens, bool add, int64_t threads) {
    product(dx, linear.width, tokens, ByRows<Plain>{{dy, linear.columns}}, weight_rows(linear, threads), add, threads, Same());
}

template <class Value> void parameter_gradients(const Linear &linear, const float *dy, Value value, int64_t tokens, int64_t threads) {
    if (!linear.weight_gradient) return;
    weight_gradient(linear.weight_gradient, linear.bias_gradient, dy, linear.columns, linear.columns, value, linear.width, tokens, false, threads);
}

template <class Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}  // namespace

extern "C" {

// Whether these products are to be used with these instructions: on AMD's processors with either they are faster than the
// libraries', on Intel's with AVX-512 as fast, at less memory.
int measured_best() {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
    return 1;
#else
    return 0;
#endif
}

// All that follow return 0, or 1 when there is no memory for the blocks. Columns and widths are multiples of 16, rows contiguous.

int linear_forward(const Linear *linear, float *y, const float *x, int64_t tokens, int64_t threads) {
    return guarded([=] { forward(*linear, y, Plain{x, linear->width}, tokens, threads); });
}

int linear_backward(const Linear *linear, float *dx, const float *dy, const float *x, int64_t tokens, int64_t threads) {
    return guarded([=] {
        input_gradient(*linear, dx, dy, tokens, false, threads);
        parameter_gradients(*linear, dy, Plain{x, linear->width}, tokens, threads);
    });
}

int mlp_forward(const Mlp *mlp, float *y, const float *x, int64_t tokens, int64_t threads) {
    return guarded([=] {
        const Plain input{x, mlp->up.width};
        forward(mlp->up, mlp->inner_up, input, tokens, threads);
        if (mlp->inner_gate) forward(mlp->gate, mlp->inner_gate, input, tokens, threads);
        forward(mlp->down, y, Activated{mlp}, tokens, threads);
    });
}

// `dup` and `dgate` are room for the gradients of the inner values.
int mlp_backward(const Mlp *mlp, float *dx, float *dup, float *dgate, const float *dy, const float *x, int64_t tokens, int64_t threads) {
    return guarded([=] {
        product(dup, mlp->up.columns, tokens, ByRows<Plain>{{dy, mlp->down.columns}}, weight_rows(mlp->down, threads), false, threads,
                Through{mlp, dgate});
        parameter_gradients(mlp->down, dy, Activated{mlp}, tokens, threads);
        const Plain input{x, mlp->up.width};
        input_gradient(mlp->up, dx, dup, tokens, false, threads);
        parameter_gradients(mlp->up, dup, input, tokens, threads);
        if (!mlp->inner_gate) return;
        input_gradient(mlp->gate, dx, dgate, tokens, true, threads);
        parameter_gradients(mlp->gate, dgate, input, tokens, threads);
    });
}

}  // extern "C"
