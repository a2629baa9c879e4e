// AdamW (Loshchilov and Hutter 2019) over all variables in one launch, and the norm of all gradients.
#include "common.cuh"

// Numbers of a variable that one block updates.
#define CHUNK 4096

// The variables of a model are tables of addresses (weights, gradients, both moments), `lens`, their
// sizes, and `blocks`, the number of each one's first block; its entry after the last is the grid's
// size.

// The variable of this block, and its range in it.
__device__ inline int find(const unsigned *blocks, const i64 *lens, int count, i64 *first, i64 *last) {
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (blocks[middle] <= blockIdx.x) low = middle;
        else high = middle;
    }
    *first = (i64)(blockIdx.x - blocks[low]) * CHUNK;
    *last = *first + CHUNK < lens[low] ? *first + CHUNK : lens[low];
    return low;
}

// A step. factors [count, 2]: of each variable the learning rate over 1 - beta1^step, and 1 minus
// learning rate times decay. root is sqrt(1 - beta2^step), scale a factor on all gradients.
extern "C" __global__ void __launch_bounds__(THREADS)
adamw(float *const *weights, const float *const *gradients, float *const *m, float *const *v,
      const i64 *lens, const unsigned *blocks, const float *factors, int count, float beta1, float beta2,
      float rest1, float rest2, float eps, float root, float scale) {
    i64 first, last;
    int at = find(blocks, lens, count, &first, &last);
    float rate = factors[2 * at], keep = factors[2 * at + 1];
    for (i64 i = first + threadIdx.x; i < last; i += THREADS) {
        float g = gradients[at][i] * scale;
        float m_new = beta1 * m[at][i] + rest1 * g, v_new = beta2 * v[at][i] + rest2 * g * g;
        m[at][i] = m_new;
        v[at][i] = v_new;
        weights[at][i] = weights[at][i] * keep - rate * m_new / (sqrtf(v_new) / root + eps);
    }
}

// parts[b] = the sum of the squares of the gradients of block b, as a double.
extern "C" __global__ void __launch_bounds__(THREADS)
sum_of_squares(const float *const *gradients, const i64 *lens, const unsigned *blocks, double *parts,
               int count) {
    SHARED(double, sums);
    i64 first, last;
    int at = find(blocks, lens, count, &first, &last);
    double sum = 0.0;
    for (i64 i = first + threadIdx.x; i < last; i += THREADS)
        sum += (double)gradients[at][i] * (double)gradients[at][i];
    sums[threadIdx.x] = sum;
    for (unsigned step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}
