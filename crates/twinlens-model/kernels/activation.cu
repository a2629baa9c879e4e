// Bias and activation of a feed-forward layer, their gradient, and sums over rows.
#include "common.cuh"

// x Phi(x), exact.
#define GELU 0
// x sigmoid(1.702 x).
#define QUICK_GELU 1
#define SHARPNESS 1.702f

// The value of the activation and, in `slope`, its derivative.
__device__ inline float activate(float x, int kind, float *slope) {
    if (kind == QUICK_GELU) {
        float s = 1.0f / (1.0f + expf(-SHARPNESS * x));
        *slope = s * (1.0f + SHARPNESS * x * (1.0f - s));
        return x * s;
    }
    float phi = 0.5f * (1.0f + erff(x * 0.70710678f));
    *slope = phi + x * 0.39894228f * expf(-0.5f * x * x);
    return x * phi;
}

// y = f(x + bias): x and y [rows, width]. As many blocks as the launch likes.
template <typename T>
__device__ void bias_activation(const T *x, const float *bias, T *y, i64 count, int width, int kind) {
    i64 step = (i64)gridDim.x * THREADS;
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        float slope;
        narrow(&y[i], activate(widen(x[i]) + bias[i % width], kind, &slope));
    }
}

// dx = dy f'(x + bias). Blocks in x are columns, block b in y takes the rows from b * group on and
// writes the sums of dx over them to parts[b] ([width]): parts of the bias's gradient.
template <typename T>
__device__ void bias_activation_backward(const T *x, const float *bias, const T *dy, T *dx, float *parts,
                                         i64 rows, int width, int group, int kind) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= width) return;
    i64 first = (i64)blockIdx.y * group, last = first + group < rows ? first + group : rows;
    float sum = 0.0f, shift = bias[c];
    for (i64 r = first; r < last; r++) {
        float slope;
        activate(widen(x[r * width + c]) + shift, kind, &slope);
        float d = widen(dy[r * width + c]) * slope;
        narrow(&dx[r * width + c], d);
        sum += d;
    }
    parts[(i64)blockIdx.y * width + c] = sum;
}

// Sums of columns: parts[b] ([width]) of the rows of x from b * group on, as above. With float and
// one block in y it sums parts.
template <typename T>
__device__ void column_sums(const T *x, float *parts, i64 rows, int width, int group) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= width) return;
    i64 first = (i64)blockIdx.y * group, last = first + group < rows ? first + group : rows;
    float sum = 0.0f;
    for (i64 r = first; r < last; r++) sum += widen(x[r * width + c]);
    parts[(i64)blockIdx.y * width + c] = sum;
}

#define PARAMETERS(T) (const T *x, const float *bias, T *y, i64 count, int width, int kind)
FOR_BOTH_TYPES(bias_activation, PARAMETERS, (x, bias, y, count, width, kind))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *x, const float *bias, const T *dy, T *dx, float *parts, i64 rows, int width, int group, int kind)
FOR_BOTH_TYPES(bias_activation_backward, PARAMETERS, (x, bias, dy, dx, parts, rows, width, group, kind))
#undef PARAMETERS

#define PARAMETERS(T) (const T *x, float *parts, i64 rows, int width, int group)
FOR_BOTH_TYPES(column_sums, PARAMETERS, (x, parts, rows, width, group))
#undef PARAMETERS
