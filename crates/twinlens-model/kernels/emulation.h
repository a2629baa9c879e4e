// CUDA's blocks, threads, shared memory, barriers and warp shuffles in C++, for tests without a GPU.
//
// Each thread of a block is a fiber that runs until it waits: at a barrier of its block, or for its
// warp. Blocks run one after another. What the hardware leaves undefined ends the program with a
// message: threads of a block at different barriers, a shuffle from a thread that has ended, writes
// beyond a buffer. Shared memory starts as NaN. Fibers run in ascending or descending order, and a
// test compares the bits of both, which differ where a barrier is missing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __restrict__
#define SHARED(type, name) type *name = reinterpret_cast<type *>(emulation::shared())

struct bf16 {
    uint16_t bits;
};

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To nearest, ties to even.
inline void narrow(bf16 *to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    to->bits = std::isnan(x) ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

namespace emulation {

struct Dim3 {
    unsigned x, y, z;
};

enum class State { Ready, AtBlock, AtWarp, Ended };

struct Fiber {
    ucontext_t context;
    State state;
    std::unique_ptr<char[]> stack;
};

constexpr size_t STACK = 128 * 1024;

struct Machine {
    Dim3 grid{1, 1, 1}, block{1, 1, 1}, block_index{0, 0, 0}, thread{0, 0, 0};
    std::vector<Fiber> fibers;
    std::vector<unsigned char> shared;
    size_t shared_bytes = 0;
    std::vector<float> slots;
    ucontext_t scheduler;
    std::function<void()> kernel;
    bool descending = false;
};

inline Machine machine;

[[noreturn]] inline void fail(const char *what) {
    const Machine &m = machine;
    fprintf(stderr, "emulation: %s (block %u,%u,%u, thread %u)\n", what, m.block_index.x, m.block_index.y,
            m.block_index.z, m.thread.x);
    exit(1);
}

inline unsigned char *shared() {
    if (machine.shared_bytes == 0) fail("the launch has no shared memory");
    return machine.shared.data();
}

inline void wait(State state) {
    Fiber &own = machine.fibers[machine.thread.x];
    own.state = state;
    swapcontext(&own.context, &machine.scheduler);
}

inline float shuffle(float value, unsigned from) {
    unsigned own = machine.thread.x, source = own / 32 * 32 + from % 32;
    if (source >= machine.block.x || machine.fibers[source].state == State::Ended)
        fail("a shuffle from a thread that does not run");
    machine.slots[own] = value;
    wait(State::AtWarp);
    value = machine.slots[source];
    // Nobody writes its next value before all have read this one.
    wait(State::AtWarp);
    return value;
}

inline void run_fiber() {
    machine.kernel();
    machine.fibers[machine.thread.x].state = State::Ended;
}

// Makes the threads first..last ready if all of them that have not ended wait for the same.
inline bool release(unsigned first, unsigned last, State waited) {
    bool any = false;
    for (unsigned i = first; i < last; i++) {
        State state = machine.fibers[i].state;
        if (state != waited && state != State::Ended) return false;
        any = any || state == waited;
    }
    for (unsigned i = first; any && i < last; i++)
        if (machine.fibers[i].state == waited) machine.fibers[i].state = State::Ready;
    return any;
}

inline void run_block() {
    Machine &m = machine;
    unsigned threads = m.block.x;
    constexpr size_t GUARD = 64;
    m.shared.assign(m.shared_bytes + GUARD, 0xff);
    m.fibers.resize(threads);
    m.slots.assign(threads, NAN);
    for (Fiber &fiber : m.fibers) {
        if (!fiber.stack) fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &m.scheduler;
        makecontext(&fiber.context, run_fiber, 0);
        fiber.state = State::Ready;
    }
    while (true) {
        bool progress = false, alive = false;
        for (unsigned i = 0; i < threads; i++) {
            unsigned at = m.descending ? threads - 1 - i : i;
            if (m.fibers[at].state != State::Ready) continue;
            m.thread = {at, 0, 0};
            swapcontext(&m.scheduler, &m.fibers[at].context);
            progress = true;
        }
        for (unsigned warp = 0; warp < threads; warp += 32)
            progress = release(warp, std::min(warp + 32, threads), State::AtWarp) || progress;
        progress = release(0, threads, State::AtBlock) || progress;
        for (const Fiber &fiber : m.fibers) alive = alive || fiber.state != State::Ended;
        if (!alive) break;
        if (!progress) fail("threads of a block wait at different barriers");
    }
    for (size_t i = 0; i < GUARD; i++)
        if (m.shared[m.shared_bytes + i] != 0xff) fail("a write beyond the shared memory");
}

inline void launch(Dim3 grid, unsigned threads, size_t shared_bytes, std::function<void()> kernel) {
    Machine &m = machine;
    m.grid = grid, m.block = {threads, 1, 1}, m.shared_bytes = shared_bytes, m.kernel = std::move(kernel);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                m.block_index = {x, y, z};
                run_block();
            }
}

}  // namespace emulation

#define gridDim (emulation::machine.grid)
#define blockDim (emulation::machine.block)
#define blockIdx (emulation::machine.block_index)
#define threadIdx (emulation::machine.thread)

inline void __syncthreads() { emulation::wait(emulation::State::AtBlock); }

inline void __syncwarp() { emulation::wait(emulation::State::AtWarp); }

inline float __shfl_xor_sync(unsigned, float value, int step) {
    return emulation::shuffle(value, (emulation::machine.thread.x % 32) ^ unsigned(step));
}

// Operations that nvcc must not contract; the harness is compiled with -ffp-contract=off.
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
