// Attention of packed queries, keys and values, softmax(Q K^T / sqrt(depth)) V for each head (Vaswani
// et al. 2017, section 3.2), and its gradient.
//
// Scores are computed for tiles of 32 queries and 32 keys in shared memory and never stored (Dao et
// al. 2022); the backward pass computes them again from the logarithms of the sums. A block has a
// tile of queries (keys, for their gradients), a head and a sequence: x, y and z of the grid. Queries
// and keys are not padded to full tiles in memory: what is beyond the length is 0 in shared memory.
#include "common.cuh"

#define TILE 32

// The sizes of a batch of sequences: qkv [batch, len, 3 heads depth], out [batch, len, heads depth].
struct Sizes {
    // Tokens of a sequence.
    int len;
    int heads;
    // Numbers in a head, at most DEPTH.
    int depth;
    // Whether a token attends only to itself and earlier ones.
    int causal;
    // Tokens that a sequence has, [batch], at least 1: later ones are hidden. Or null: all are there.
    const int *lens;
};

// A tile of rows of shared memory: one more column than DEPTH, so that a column is in 32 banks.
template <int DEPTH> struct Rows {
    float *values;
    __device__ float &at(int row, int column) const { return values[row * (DEPTH + 1) + column]; }
};

// Part 0 (queries), 1 (keys) or 2 (values) of the tile that begins at `first`, with its bias.
template <int DEPTH, typename T>
__device__ void load_part(Rows<DEPTH> to, const T *qkv, const float *bias, int part, int first, Sizes s) {
    int width = s.heads * s.depth, column = part * width + blockIdx.y * s.depth;
    for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        int row = i / DEPTH, c = i % DEPTH;
        float value = 0.0f;
        if (first + row < s.len && c < s.depth) {
            i64 token = (i64)blockIdx.z * s.len + first + row;
            value = widen(qkv[token * 3 * width + column + c]) + (bias ? bias[column + c] : 0.0f);
        }
        to.at(row, c) = value;
    }
}

// The tile of this head in values [batch, len, heads depth].
template <int DEPTH, typename T>
__device__ void load_head(Rows<DEPTH> to, const T *from, int first, Sizes s) {
    int width = s.heads * s.depth;
    for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        int row = i / DEPTH, c = i % DEPTH;
        bool inside = first + row < s.len && c < s.depth;
        i64 token = (i64)blockIdx.z * s.len + first + row;
        to.at(row, c) = inside ? widen(from[token * width + blockIdx.y * s.depth + c]) : 0.0f;
    }
}

// Whether a query sees a key.
__device__ inline bool sees(int query, int key, Sizes s) {
    int len = s.lens ? s.lens[blockIdx.z] : s.len;
    return key < len && (!s.causal || key <= query);
}

// One past the last key that any query of the tile sees.
__device__ inline int keys_end(int first_query, Sizes s) {
    int len = s.lens ? s.lens[blockIdx.z] : s.len;
    return s.causal && first_query + TILE < len ? first_query + TILE : len;
}

// A thread has rows 2 ty and 2 ty + 1 of a tile, and the columns tx, tx + 8, ...
#define TX (threadIdx.x % 8)
#define TY (threadIdx.x / 8)

// products[i][j] = a[2 ty + i] . b[tx + 8 j].
template <int DEPTH>
__device__ void row_products(float products[2][TILE / 8], Rows<DEPTH> a, Rows<DEPTH> b) {
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < TILE / 8; j++) products[i][j] = 0.0f;
    for (int c = 0; c < DEPTH; c++) {
        float left[2] = {a.at(2 * TY, c), a.at(2 * TY + 1, c)};
        for (int j = 0; j < TILE / 8; j++) {
            float right = b.at(TX + 8 * j, c);
            products[0][j] += left[0] * right;
            products[1][j] += left[1] * right;
        }
    }
}

// sums[i][j] += sum over k of weights[2 ty + i][k] rows[k][tx + 8 j]; TRANSPOSED: of weights[k][..].
template <int DEPTH, bool TRANSPOSED>
__device__ void add_products(float sums[2][DEPTH / 8], Rows<TILE> weights, Rows<DEPTH> rows) {
    for (int k = 0; k < TILE; k++) {
        float left[2];
        for (int i = 0; i < 2; i++)
            left[i] = TRANSPOSED ? weights.at(k, 2 * TY + i) : weights.at(2 * TY + i, k);
        for (int j = 0; j < DEPTH / 8; j++) {
            float right = rows.at(k, TX + 8 * j);
            sums[0][j] += left[0] * right;
            sums[1][j] += left[1] * right;
        }
    }
}

// Writes the thread's sums to rows of `to`, from number `at` on, `stride` apart.
template <int DEPTH, typename T>
__device__ void store(T *to, i64 at, i64 stride, float sums[2][DEPTH / 8], float factor, int first, Sizes s) {
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < DEPTH / 8; j++) {
            int row = 2 * TY + i, c = TX + 8 * j;
            if (first + row < s.len && c < s.depth) narrow(&to[at + row * stride + c], sums[i][j] * factor);
        }
}

// From qkv (plus bias, [3 heads depth] or null) to out; log_sums [batch, heads, len] are ln sum exp
// of each query's scores. Shared memory: 3 TILE (DEPTH + 1) + TILE (TILE + 1) + 2 TILE floats.
template <int DEPTH, typename T>
__device__ void attention(const T *qkv, const float *bias, T *out, float *log_sums, Sizes s) {
    SHARED(float, memory);
    Rows<DEPTH> queries{memory}, keys{queries.values + TILE * (DEPTH + 1)};
    Rows<DEPTH> values{keys.values + TILE * (DEPTH + 1)};
    Rows<TILE> weights{values.values + TILE * (DEPTH + 1)};
    // Of each query: the factor on earlier sums when its maximum grows, and its sum.
    float *rescale = weights.values + TILE * (TILE + 1), *totals = rescale + TILE;
    int first = blockIdx.x * TILE, end = keys_end(first, s);
    float scale = 1.0f / sqrtf((float)s.depth);
    load_part(queries, qkv, bias, 0, first, s);
    float sums[2][DEPTH / 8];
    for (int j = 0; j < DEPTH / 8; j++) sums[0][j] = sums[1][j] = 0.0f;
    // Four threads share the softmax of a query.
    int row = threadIdx.x / 4, lane = threadIdx.x % 4;
    float top = -INFINITY, total = 0.0f;
    for (int key = 0; key < end; key += TILE) {
        __syncthreads();
        load_part(keys, qkv, bias, 1, key, s);
        load_part(values, qkv, bias, 2, key, s);
        __syncthreads();
        float products[2][TILE / 8];
        row_products<DEPTH>(products, queries, keys);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < TILE / 8; j++) {
                bool seen = sees(first + 2 * TY + i, key + TX + 8 * j, s);
                weights.at(2 * TY + i, TX + 8 * j) = seen ? products[i][j] * scale : -INFINITY;
            }
        __syncthreads();
        float above = top;
        for (int k = lane; k < TILE; k += 4) above = fmaxf(above, weights.at(row, k));
        above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 1));
        above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 2));
        float part = 0.0f;
        for (int k = lane; k < TILE; k += 4) {
            // A query that has seen no key yet has no maximum.
            float weight = above == -INFINITY ? 0.0f : expf(weights.at(row, k) - above);
            weights.at(row, k) = weight;
            part += weight;
        }
        part += __shfl_xor_sync(0xffffffffu, part, 1);
        part += __shfl_xor_sync(0xffffffffu, part, 2);
        float factor = top == -INFINITY ? 0.0f : expf(top - above);
        total = total * factor + part;
        top = above;
        if (lane == 0) rescale[row] = factor;
        __syncthreads();
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < DEPTH / 8; j++) sums[i][j] *= rescale[2 * TY + i];
        add_products<DEPTH, false>(sums, weights, values);
    }
    if (lane == 0) {
        totals[row] = total;
        if (first + row < s.len)
            log_sums[((i64)blockIdx.z * s.heads + blockIdx.y) * s.len + first + row] = top + logf(total);
    }
    __syncthreads();
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < DEPTH / 8; j++) sums[i][j] /= totals[2 * TY + i];
    int width = s.heads * s.depth;
    i64 at = ((i64)blockIdx.z * s.len + first) * width + blockIdx.y * s.depth;
    store<DEPTH>(out, at, width, sums, 1.0f, first, s);
}

// means [batch, heads, len] = sum over a head of d_out out, which the gradient of softmax needs. A warp
// for each token and head.
template <typename T>
__device__ void attention_means(const T *out, const T *d_out, float *means, i64 rows, Sizes s) {
    i64 at = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    // A whole warp leaves, or none of it.
    if (at >= rows) return;
    i64 head = at / s.len % s.heads, batch = at / s.len / s.heads;
    i64 from = (batch * s.len + at % s.len) * s.heads * s.depth + head * s.depth;
    float sum = 0.0f;
    for (int c = threadIdx.x % 32; c < s.depth; c += 32) sum += widen(out[from + c]) * widen(d_out[from + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) means[at] = sum;
}

// The tiles and per-query numbers of both gradients. Shared memory: 4 TILE (DEPTH + 1) + 2 TILE
// (TILE + 1) + 2 TILE floats.
template <int DEPTH> struct Gradient {
    Rows<DEPTH> queries, keys, values, d_out;
    Rows<TILE> weights, d_scores;
    float *log_sums, *means;

    __device__ Gradient(float *memory) {
        queries.values = memory;
        keys.values = queries.values + TILE * (DEPTH + 1);
        values.values = keys.values + TILE * (DEPTH + 1);
        d_out.values = values.values + TILE * (DEPTH + 1);
        weights.values = d_out.values + TILE * (DEPTH + 1);
        d_scores.values = weights.values + TILE * (TILE + 1);
        log_sums = d_scores.values + TILE * (TILE + 1);
        means = log_sums + TILE;
    }

    // What belongs to a tile of queries.
    template <typename T>
    __device__ void load_queries(const T *qkv, const float *bias, const T *d, const float *all_log_sums,
                                 const float *all_means, int first, Sizes s) {
        load_part(queries, qkv, bias, 0, first, s);
        load_head(d_out, d, first, s);
        i64 at = ((i64)blockIdx.z * s.heads + blockIdx.y) * s.len + first;
        if (threadIdx.x < TILE && first + (int)threadIdx.x < s.len) {
            log_sums[threadIdx.x] = all_log_sums[at + threadIdx.x];
            means[threadIdx.x] = all_means[at + threadIdx.x];
        }
    }

    // Attention weights and the gradient of the unscaled scores. 0 where a query is beyond the end.
    __device__ void scores(int query, int key, Sizes s) {
        float products[2][TILE / 8], d[2][TILE / 8], scale = 1.0f / sqrtf((float)s.depth);
        row_products<DEPTH>(products, queries, keys);
        row_products<DEPTH>(d, d_out, values);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < TILE / 8; j++) {
                int row = 2 * TY + i, column = TX + 8 * j;
                bool seen = query + row < s.len && sees(query + row, key + column, s);
                float weight = seen ? expf(products[i][j] * scale - log_sums[row]) : 0.0f;
                weights.at(row, column) = weight;
                d_scores.at(row, column) = seen ? scale * weight * (d[i][j] - means[row]) : 0.0f;
            }
    }
};

// The gradient of the queries, in their place in d_qkv [batch, len, 3 heads depth].
template <int DEPTH, typename T>
__device__ void attention_queries(const T *qkv, const float *bias, const T *d_out, const float *log_sums,
                                  const float *means, T *d_qkv, Sizes s) {
    SHARED(float, memory);
    Gradient<DEPTH> g(memory);
    int first = blockIdx.x * TILE, end = keys_end(first, s), width = s.heads * s.depth;
    g.load_queries(qkv, bias, d_out, log_sums, means, first, s);
    float sums[2][DEPTH / 8];
    for (int j = 0; j < DEPTH / 8; j++) sums[0][j] = sums[1][j] = 0.0f;
    for (int key = 0; key < end; key += TILE) {
        __syncthreads();
        load_part(g.keys, qkv, bias, 1, key, s);
        load_part(g.values, qkv, bias, 2, key, s);
        __syncthreads();
        g.scores(first, key, s);
        __syncthreads();
        add_products<DEPTH, false>(sums, g.d_scores, g.keys);
    }
    i64 at = ((i64)blockIdx.z * s.len + first) * 3 * width + blockIdx.y * s.depth;
    store<DEPTH>(d_qkv, at, 3 * width, sums, 1.0f, first, s);
}

// The gradients of keys and values, in their places in d_qkv.
template <int DEPTH, typename T>
__device__ void attention_keys(const T *qkv, const float *bias, const T *d_out, const float *log_sums,
                               const float *means, T *d_qkv, Sizes s) {
    SHARED(float, memory);
    Gradient<DEPTH> g(memory);
    int first = blockIdx.x * TILE, width = s.heads * s.depth;
    load_part(g.keys, qkv, bias, 1, first, s);
    load_part(g.values, qkv, bias, 2, first, s);
    float d_keys[2][DEPTH / 8], d_values[2][DEPTH / 8];
    for (int j = 0; j < DEPTH / 8; j++)
        d_keys[0][j] = d_keys[1][j] = d_values[0][j] = d_values[1][j] = 0.0f;
    // Earlier queries do not see these keys.
    for (int query = s.causal ? first : 0; query < s.len; query += TILE) {
        __syncthreads();
        g.load_queries(qkv, bias, d_out, log_sums, means, query, s);
        __syncthreads();
        g.scores(query, first, s);
        __syncthreads();
        add_products<DEPTH, true>(d_keys, g.d_scores, g.queries);
        add_products<DEPTH, true>(d_values, g.weights, g.d_out);
    }
    i64 at = ((i64)blockIdx.z * s.len + first) * 3 * width + blockIdx.y * s.depth;
    store<DEPTH>(d_qkv, at + width, 3 * width, d_keys, 1.0f, first, s);
    store<DEPTH>(d_qkv, at + 2 * width, 3 * width, d_values, 1.0f, first, s);
}

// Two depths of tiles: heads of up to 64 and of up to 128 numbers.
#define FOR_BOTH_DEPTHS(name, parameters, arguments) \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_64_f32 parameters(float) { name<64> arguments; } \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_64_bf16 parameters(bf16) { name<64> arguments; } \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_128_f32 parameters(float) { name<128> arguments; } \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_128_bf16 parameters(bf16) { name<128> arguments; }

#define PARAMETERS(T) \
    (const T *qkv, const float *bias, T *out, float *log_sums, int len, int heads, int depth, int causal, \
     const int *lens)
FOR_BOTH_DEPTHS(attention, PARAMETERS, (qkv, bias, out, log_sums, Sizes{len, heads, depth, causal, lens}))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *out, const T *d_out, float *means, i64 rows, int len, int heads, int depth)
FOR_BOTH_TYPES(attention_means, PARAMETERS, (out, d_out, means, rows, Sizes{len, heads, depth, 0, nullptr}))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *qkv, const float *bias, const T *d_out, const float *log_sums, const float *means, T *d_qkv, \
     int len, int heads, int depth, int causal, const int *lens)
FOR_BOTH_DEPTHS(attention_queries, PARAMETERS,
                (qkv, bias, d_out, log_sums, means, d_qkv, Sizes{len, heads, depth, causal, lens}))
FOR_BOTH_DEPTHS(attention_keys, PARAMETERS,
                (qkv, bias, d_out, log_sums, means, d_qkv, Sizes{len, heads, depth, causal, lens}))
#undef PARAMETERS
