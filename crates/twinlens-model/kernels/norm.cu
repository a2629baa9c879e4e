// Layer norm after a residual sum (Ba et al. 2016, section 3), and its gradient.
#include "common.cuh"

#define NORM_EPS 1e-5f

// sum = x + delta + delta_bias; y = gain (sum - mean) / sqrt(var + eps) + bias, row by row.
//
// x, delta, sum, y: [rows, width]; stats: [rows, 2], mean and 1 / sqrt(var + eps). Without delta
// (null), sum and delta_bias are null and x itself is normalised. A block for each row, with shared
// memory for width + WARPS floats. Statistics are those of the sum as it is stored.
template <typename T>
__device__ void add_layer_norm(const T *x, const T *delta, const float *delta_bias, const float *gain,
                               const float *bias, T *sum, T *y, float *stats, int width) {
    SHARED(float, row);
    float *scratch = row + width;
    i64 first = (i64)blockIdx.x * width;
    float part = 0.0f;
    for (int c = threadIdx.x; c < width; c += THREADS) {
        float value = widen(x[first + c]);
        if (delta) {
            value += widen(delta[first + c]) + (delta_bias ? delta_bias[c] : 0.0f);
            narrow(&sum[first + c], value);
            value = widen(sum[first + c]);
        }
        row[c] = value;
        part += value;
    }
    float mean = block_sum(part, scratch) / width;
    part = 0.0f;
    for (int c = threadIdx.x; c < width; c += THREADS) part += (row[c] - mean) * (row[c] - mean);
    float scale = 1.0f / sqrtf(block_sum(part, scratch) / width + NORM_EPS);
    for (int c = threadIdx.x; c < width; c += THREADS)
        narrow(&y[first + c], (row[c] - mean) * scale * gain[c] + bias[c]);
    if (threadIdx.x == 0) {
        stats[2 * (i64)blockIdx.x] = mean;
        stats[2 * (i64)blockIdx.x + 1] = scale;
    }
}

// The gradient. With z the normalised row and e = dy gain: d = d_sum + (e - mean(e) - z mean(e z)) /
// sqrt(var + eps); d_sum may be null.
//
// Block b takes the rows from b * group on and writes its sums of dy z, dy and d over them to
// parts[b] ([3, width]): the parts of the gradients of gain, bias and delta_bias. Each thread owns
// its columns. Shared memory for 3 width + WARPS floats.
template <typename T>
__device__ void add_layer_norm_backward(const T *sum, const float *stats, const float *gain, const T *dy,
                                        const T *d_sum, T *d, float *parts, i64 rows, int width, int group) {
    SHARED(float, sums);
    float *scratch = sums + 3 * width;
    for (int c = threadIdx.x; c < width; c += THREADS)
        sums[c] = sums[width + c] = sums[2 * width + c] = 0.0f;
    i64 first = (i64)blockIdx.x * group, last = first + group < rows ? first + group : rows;
    for (i64 r = first; r < last; r++) {
        float mean = stats[2 * r], scale = stats[2 * r + 1];
        float part_e = 0.0f, part_ez = 0.0f;
        for (int c = threadIdx.x; c < width; c += THREADS) {
            float e = widen(dy[r * width + c]) * gain[c];
            part_e += e;
            part_ez += e * (widen(sum[r * width + c]) - mean) * scale;
        }
        float mean_e = block_sum(part_e, scratch) / width;
        float mean_ez = block_sum(part_ez, scratch) / width;
        for (int c = threadIdx.x; c < width; c += THREADS) {
            i64 at = r * width + c;
            float up = widen(dy[at]), z = (widen(sum[at]) - mean) * scale;
            float value = (up * gain[c] - mean_e - z * mean_ez) * scale + (d_sum ? widen(d_sum[at]) : 0.0f);
            narrow(&d[at], value);
            sums[c] += up * z;
            sums[width + c] += up;
            sums[2 * width + c] += value;
        }
    }
    // The columns that a thread copies are not those that it owns.
    __syncthreads();
    for (int c = threadIdx.x; c < 3 * width; c += THREADS) parts[(i64)blockIdx.x * 3 * width + c] = sums[c];
}

#define PARAMETERS(T) \
    (const T *x, const T *delta, const float *delta_bias, const float *gain, const float *bias, T *sum, T *y, \
     float *stats, int width)
FOR_BOTH_TYPES(add_layer_norm, PARAMETERS, (x, delta, delta_bias, gain, bias, sum, y, stats, width))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *sum, const float *stats, const float *gain, const T *dy, const T *d_sum, T *d, float *parts, \
     i64 rows, int width, int group)
FOR_BOTH_TYPES(add_layer_norm_backward, PARAMETERS,
               (sum, stats, gain, dy, d_sum, d, parts, rows, width, group))
#undef PARAMETERS
