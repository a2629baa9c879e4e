// What all kernels share: storage types, reductions within a block, and the way to shared memory.
//
// The same source is compiled by nvcc for GPUs and, with emulation.h, by a C++ compiler for tests.
// Values are stored as float or bf16 and summed as float. No kernel uses atomics: each sum has one
// order, so results are equal from run to run.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
typedef __nv_bfloat16 bf16;
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline void narrow(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }
#define SHARED(type, name) extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type *name = reinterpret_cast<type *>(shared_bytes)
#else
#include "emulation.h"
#endif

typedef long long i64;

__device__ inline float widen(float x) { return x; }
__device__ inline void narrow(float *to, float x) { *to = x; }

// The threads of a block in all kernels whose launch does not say otherwise.
#define THREADS 128
#define WARPS (THREADS / 32)

__device__ inline float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// The sum over a block of THREADS threads, for all of them. `scratch` has WARPS floats.
__device__ inline float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) total += scratch[warp];
    return total;
}

__device__ inline float block_max(float x, float *scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float top = scratch[0];
    for (int warp = 1; warp < WARPS; warp++) top = fmaxf(top, scratch[warp]);
    return top;
}

// Two kernels for one template: its name with _f32 and with _bf16.
#define FOR_BOTH_TYPES(name, parameters, arguments) \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_f32 parameters(float) { name arguments; } \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_bf16 parameters(bf16) { name arguments; }
