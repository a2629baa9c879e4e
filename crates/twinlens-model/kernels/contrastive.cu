// The symmetric cross-entropy over all pairs of a batch (Radford et al. 2021, figure 3), for the rows
// of one rank against the gathered features of all: what comes between the two products of matrices.
//
// logits [rows, n] are those of rows `first`, `first` + 1, ... of one side against all of the other.
#include "common.cuh"

// log_sums[r] = ln sum exp of row r. A block for each row, with shared memory for WARPS floats.
template <typename T>
__device__ void row_log_sums(const T *logits, float *log_sums, i64 n) {
    SHARED(float, scratch);
    const T *row = logits + (i64)blockIdx.x * n;
    float top = -INFINITY, sum = 0.0f;
    for (i64 c = threadIdx.x; c < n; c += THREADS) top = fmaxf(top, widen(row[c]));
    top = block_max(top, scratch);
    for (i64 c = threadIdx.x; c < n; c += THREADS) sum += expf(widen(row[c]) - top);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) log_sums[blockIdx.x] = top + logf(sum);
}

// Replaces logits x by the gradient of the loss by them, (exp(x - own) + exp(x - other) - 2 [pair]) /
// 2n; `own` are the logarithms of the sums of this side's rows and `other` those of the other's, [n].
// shares [rows, 2]: of each row its part of the loss, (own - x) / 2n of its pair, and the sum of x
// times its gradient. A block for each row, with shared memory for WARPS floats.
template <typename T>
__device__ void contrastive_gradient(T *logits, const float *own, const float *other, float *shares, i64 n,
                                     i64 first) {
    SHARED(float, scratch);
    T *row = logits + (i64)blockIdx.x * n;
    i64 pair = first + blockIdx.x;
    float half = 0.5f / (float)n, own_sum = own[pair], scale = 0.0f, loss = 0.0f;
    for (i64 c = threadIdx.x; c < n; c += THREADS) {
        float x = widen(row[c]);
        float g = half * (expf(x - own_sum) + expf(x - other[c]) - (c == pair ? 2.0f : 0.0f));
        if (c == pair) loss = (own_sum - x) * half;
        scale += g * x;
        narrow(&row[c], g);
    }
    scale = block_sum(scale, scratch);
    loss = block_sum(loss, scratch);
    if (threadIdx.x == 0) {
        shares[2 * (i64)blockIdx.x] = loss;
        shares[2 * (i64)blockIdx.x + 1] = scale;
    }
}

#define PARAMETERS(T) (const T *logits, float *log_sums, i64 n)
FOR_BOTH_TYPES(row_log_sums, PARAMETERS, (logits, log_sums, n))
#undef PARAMETERS

#define PARAMETERS(T) (T *logits, const float *own, const float *other, float *shares, i64 n, i64 first)
FOR_BOTH_TYPES(contrastive_gradient, PARAMETERS, (logits, own, other, shares, n, first))
#undef PARAMETERS
