// Runs kernels in the emulation: reads a launch from standard input, writes all buffers after it to
// standard output. The test `kernels` talks to it. All numbers are little-endian.
//
//     u32 length, name of the kernel; u32 x 3 grid; u32 threads; u32 shared bytes; u32 descending
//     u32 buffers; each: u64 length, bytes
//     u32 arguments; each: u32 kind, then
//         0: u32 number of a buffer    1: 4 bytes    2: 8 bytes    3: null
//         4: u32 number, that many u32 numbers of buffers: a table of their addresses
#include "activation.cu"
#include "adamw.cu"
#include "attention.cu"
#include "contrastive.cu"
#include "embedding.cu"
#include "norm.cu"
#include "pixels.cu"

#include <map>
#include <string>
#include <utility>

namespace {

using Arguments = std::vector<uint64_t>;
using Call = std::function<void(const Arguments &)>;

// An argument as the driver takes it: the bytes of its type.
template <typename T> T unpack(uint64_t slot) {
    T value;
    memcpy(&value, &slot, sizeof value);
    return value;
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), const Arguments &slots, std::index_sequence<I...>) {
    kernel(unpack<A>(slots[I])...);
}

template <typename... A> Call wrap(void (*kernel)(A...)) {
    return [kernel](const Arguments &slots) {
        if (slots.size() != sizeof...(A)) emulation::fail("another number of arguments");
        call(kernel, slots, std::index_sequence_for<A...>());
    };
}

#define BOTH(name) {#name "_f32", wrap(name##_f32)}, {#name "_bf16", wrap(name##_bf16)}
#define BOTH_DEPTHS(name) BOTH(name##_64), BOTH(name##_128)

const std::map<std::string, Call> KERNELS = {
    BOTH(add_layer_norm), BOTH(add_layer_norm_backward), BOTH(bias_activation),
    BOTH(bias_activation_backward), BOTH(column_sums), BOTH_DEPTHS(attention), BOTH(attention_means),
    BOTH_DEPTHS(attention_queries), BOTH_DEPTHS(attention_keys), BOTH(row_log_sums),
    BOTH(contrastive_gradient), BOTH(embed), BOTH(embedding_pieces), {"embedding_rows", wrap(embedding_rows)},
    {"adamw", wrap(adamw)}, {"sum_of_squares", wrap(sum_of_squares)}, {"pixel_taps", wrap(pixel_taps)},
    {"pixel_rows", wrap(pixel_rows)}, BOTH(pixel_columns),
};

void read_bytes(void *to, size_t count) {
    if (fread(to, 1, count, stdin) != count) emulation::fail("the launch ends early");
}

template <typename T> T read() {
    T value;
    read_bytes(&value, sizeof value);
    return value;
}

// A buffer between two guards, which are NaN in each type.
struct Buffer {
    static constexpr size_t GUARD = 256;
    std::vector<unsigned char> bytes;
    size_t length;

    explicit Buffer(size_t length) : bytes(length + 2 * GUARD, 0xff), length(length) {}
    unsigned char *data() { return bytes.data() + GUARD; }
    void check() const {
        for (size_t i = 0; i < GUARD; i++)
            if (bytes[i] != 0xff || bytes[GUARD + length + i] != 0xff)
                emulation::fail("a write beyond a buffer");
    }
};

uint64_t address(std::vector<Buffer> &buffers) {
    uint32_t number = read<uint32_t>();
    if (number >= buffers.size()) emulation::fail("no such buffer");
    return reinterpret_cast<uint64_t>(buffers[number].data());
}

uint64_t argument(std::vector<Buffer> &buffers, std::vector<std::vector<uint64_t>> &tables) {
    switch (read<uint32_t>()) {
        case 0: return address(buffers);
        case 1: return read<uint32_t>();
        case 2: return read<uint64_t>();
        case 3: return 0;
        case 4: {
            std::vector<uint64_t> table(read<uint32_t>());
            for (uint64_t &entry : table) entry = address(buffers);
            tables.push_back(std::move(table));
            return reinterpret_cast<uint64_t>(tables.back().data());
        }
        default: emulation::fail("no such argument");
    }
}

}  // namespace

int main() {
    std::string name(read<uint32_t>(), ' ');
    read_bytes(name.data(), name.size());
    auto kernel = KERNELS.find(name);
    if (kernel == KERNELS.end()) emulation::fail(("no kernel " + name).c_str());
    emulation::Dim3 grid = read<emulation::Dim3>();
    uint32_t threads = read<uint32_t>(), shared_bytes = read<uint32_t>();
    emulation::machine.descending = read<uint32_t>();
    std::vector<Buffer> buffers;
    for (uint32_t count = read<uint32_t>(); count > 0; count--) {
        buffers.emplace_back(read<uint64_t>());
        read_bytes(buffers.back().data(), buffers.back().length);
    }
    Arguments slots;
    std::vector<std::vector<uint64_t>> tables;
    for (uint32_t count = read<uint32_t>(); count > 0; count--) slots.push_back(argument(buffers, tables));
    emulation::launch(grid, threads, shared_bytes, [&] { kernel->second(slots); });
    for (Buffer &buffer : buffers) {
        buffer.check();
        fwrite(buffer.data(), 1, buffer.length, stdout);
    }
}
