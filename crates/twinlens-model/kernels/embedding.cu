// Embedding of tokens and the gradient of its table.
#include "common.cuh"

// out [rows, width] = table [vocabulary, width] at each id + positions [context, width] at each row's
// place in its sequence of `len` tokens. A block for each row.
template <typename T>
__device__ void embed(const unsigned *ids, const float *table, const float *positions, T *out, int len,
                      int width) {
    i64 row = blockIdx.x, token = (i64)ids[row] * width, position = row % len * width;
    for (int c = threadIdx.x; c < width; c += THREADS)
        narrow(&out[row * width + c], table[token + c] + positions[position + c]);
}

// Rows of the same id lie anywhere in a batch, and some ids have thousands. So the sum of an id is
// made in two steps of one order each: the rows' numbers are sorted by id and cut into pieces, none of
// which has two ids; embedding_pieces sums each piece, and embedding_rows the pieces of each id.

// parts[p] ([width]) = the sum of the rows of d [rows, width] that order[starts[p]..starts[p + 1]]
// names. A block for each piece.
template <typename T>
__device__ void embedding_pieces(const T *d, const unsigned *order, const unsigned *starts, float *parts,
                                 int width) {
    unsigned first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    for (int c = threadIdx.x; c < width; c += THREADS) {
        float sum = 0.0f;
        for (unsigned i = first; i < last; i++) sum += widen(d[(i64)order[i] * width + c]);
        parts[(i64)blockIdx.x * width + c] = sum;
    }
}

// d_table [vocabulary, width], zeros before: row ids[i] becomes the sum of the pieces
// firsts[i]..firsts[i + 1]. A block for each id that occurs.
extern "C" __global__ void __launch_bounds__(THREADS)
embedding_rows(const float *parts, const unsigned *ids, const unsigned *firsts, float *d_table, int width) {
    unsigned first = firsts[blockIdx.x], last = firsts[blockIdx.x + 1];
    for (int c = threadIdx.x; c < width; c += THREADS) {
        float sum = 0.0f;
        for (unsigned p = first; p < last; p++) sum += parts[(i64)p * width + c];
        d_table[(i64)ids[blockIdx.x] * width + c] = sum;
    }
}

#define PARAMETERS(T) \
    (const unsigned *ids, const float *table, const float *positions, T *out, int len, int width)
FOR_BOTH_TYPES(embed, PARAMETERS, (ids, table, positions, out, len, width))
#undef PARAMETERS

#define PARAMETERS(T) \
    (const T *d, const unsigned *order, const unsigned *starts, float *parts, int width)
FOR_BOTH_TYPES(embedding_pieces, PARAMETERS, (d, order, starts, parts, width))
#undef PARAMETERS
