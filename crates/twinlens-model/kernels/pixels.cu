// Pixels as bytes to the input of an image tower: a square is cut out, resized, mirrored, normalised.
//
// Resizing is Pillow's, equal in every value: fixed-point weights of 22 bits, rows before columns, 8
// bits between (twinlens-image, `resample`). Operations that a compiler may not contract are written
// as such, since a weight that differs by its last bit changes values.
#include "common.cuh"

#define BOX 0
#define BILINEAR 1
#define BICUBIC 2
#define FRACTION_BITS 22

// An image of a batch: its first byte, the bytes of a row, and the first byte of its resized rows
// ([side, size, 3]) in the memory between the two passes.
struct Image {
    i64 start;
    i64 between;
    int stride;
    int left;
    int top;
    int side;
    int mirror;
    // Unused: the size of the structure is a multiple of 8.
    int padding;
};

__device__ inline double filter_weight(double x, int filter) {
    double distance = x < 0.0 ? -x : x;
    if (filter == BOX) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    if (filter == BILINEAR) return distance < 1.0 ? __dadd_rn(1.0, -distance) : 0.0;
    if (distance < 1.0) {
        double inner = __dadd_rn(__dmul_rn(1.5, distance), -2.5);
        return __dadd_rn(__dmul_rn(__dmul_rn(inner, distance), distance), 1.0);
    }
    if (distance < 2.0) {
        double inner = __dadd_rn(__dmul_rn(__dadd_rn(distance, -5.0), distance), 8.0);
        return __dmul_rn(__dadd_rn(__dmul_rn(inner, distance), -4.0), -0.5);
    }
    return 0.0;
}

// starts [images, size] and weights [images, size, taps]: the first input value of each output value,
// and its weights; those beyond its last are 0. A thread for each output value.
extern "C" __global__ void __launch_bounds__(THREADS)
pixel_taps(const Image *images, int *starts, int *weights, int size, int taps, int filter) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    int side = images[blockIdx.y].side;
    double scale = __ddiv_rn((double)side, (double)size), stretch = scale > 1.0 ? scale : 1.0;
    double support = filter == BOX ? 0.5 : filter == BILINEAR ? 1.0 : 2.0;
    support = __dmul_rn(support, stretch);
    double centre = __dmul_rn((double)i + 0.5, scale);
    double low = __dadd_rn(__dadd_rn(centre, -support), 0.5), high = __dadd_rn(__dadd_rn(centre, support), 0.5);
    int start = low > 0.0 ? (int)low : 0, end = (int)high < side ? (int)high : side;
    double inverse = __ddiv_rn(1.0, stretch), total = 0.0;
    i64 at = (i64)blockIdx.y * size + i;
    for (int x = start; x < end; x++) {
        double place = __dmul_rn(__dadd_rn(__dadd_rn((double)x, -centre), 0.5), inverse);
        total = __dadd_rn(total, filter_weight(place, filter));
    }
    if (total == 0.0) total = 1.0;
    for (int k = 0; k < taps; k++) {
        int x = start + k;
        double place = __dmul_rn(__dadd_rn(__dadd_rn((double)x, -centre), 0.5), inverse);
        double weight = x < end ? __ddiv_rn(filter_weight(place, filter), total) : 0.0;
        // Half away from zero.
        weights[at * taps + k] = (int)round(__dmul_rn(weight, (double)(1 << FRACTION_BITS)));
    }
    starts[at] = start;
}

__device__ inline unsigned char clamp_sum(int sum) {
    int value = sum >> FRACTION_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Resizes along rows: between [side, size, 3] of each image. A thread for each value of a row; blocks
// are (values, rows, images).
extern "C" __global__ void __launch_bounds__(THREADS)
pixel_rows(const unsigned char *bytes, const Image *images, const int *starts, const int *weights,
           unsigned char *between, int size, int taps) {
    Image image = images[blockIdx.z];
    int value = blockIdx.x * THREADS + threadIdx.x, column = value / 3, channel = value % 3;
    if (column >= size) return;
    i64 at = (i64)blockIdx.z * size + column;
    for (int row = blockIdx.y; row < image.side; row += gridDim.y) {
        const unsigned char *line = bytes + image.start + (i64)(image.top + row) * image.stride;
        int first = image.left + starts[at], sum = 1 << (FRACTION_BITS - 1);
        for (int k = 0; k < taps && starts[at] + k < image.side; k++)
            sum += weights[at * taps + k] * line[(first + k) * 3 + channel];
        between[image.between + ((i64)row * size + column) * 3 + channel] = clamp_sum(sum);
    }
}

// Resizes along columns, mirrors, and normalises: out [images, 3, size, size] = (value / 255 - mean) /
// std; channels [3, 2] are mean and std. A thread for each value; blocks are (columns, rows, images).
template <typename T>
__device__ void pixel_columns(const unsigned char *between, const Image *images, const int *starts,
                              const int *weights, const float *channels, T *out, int size, int taps) {
    Image image = images[blockIdx.z];
    int value = blockIdx.x * THREADS + threadIdx.x, column = value % size, channel = value / size;
    if (channel >= 3) return;
    i64 at = (i64)blockIdx.z * size + blockIdx.y;
    int sum = 1 << (FRACTION_BITS - 1);
    for (int k = 0; k < taps && starts[at] + k < image.side; k++) {
        i64 row = starts[at] + k;
        sum += weights[at * taps + k] * between[image.between + (row * size + column) * 3 + channel];
    }
    float level = __fdiv_rn((float)clamp_sum(sum), 255.0f);
    float normal = __fdiv_rn(__fadd_rn(level, -channels[2 * channel]), channels[2 * channel + 1]);
    int to = image.mirror ? size - 1 - column : column;
    narrow(&out[(((i64)blockIdx.z * 3 + channel) * size + blockIdx.y) * size + to], normal);
}

#define PARAMETERS(T) \
    (const unsigned char *between, const Image *images, const int *starts, const int *weights, \
     const float *channels, T *out, int size, int taps)
FOR_BOTH_TYPES(pixel_columns, PARAMETERS,
               (between, images, starts, weights, channels, out, size, taps))
#undef PARAMETERS
