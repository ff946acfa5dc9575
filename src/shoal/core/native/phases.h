// Work in phases for a few threads, each phase waiting for the one before: dozens of them in the time of a token.
//
// A phase's items go to whichever thread is free, and it is over when all items are done, not when all threads have come: a
// thread that lost its core without an item in hand holds up nobody. That, and no call into the operating system, is
// what a barrier of OpenMP's lacks.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Phases {
    struct alignas(64) Phase {
        std::atomic<int64_t> taken{0}, done{0};
    };
    std::vector<Phase> phases;

public:
    static constexpr int PATIENCE = 1 << 16;  // looks before the core is offered to others: about a millisecond

    explicit Phases(int64_t most) : phases(most) {}

    // One thread's way through the phases; all threads go the same.
    class Walk {
        Phase *phase;

    public:
        explicit Walk(Phases &all) : phase(all.phases.data()) {}

        // Call work(item) for items of [0, items), until all are done.
        template <class Work> void operator()(int64_t items, Work work) {
            int64_t own = 0;
            for (int64_t item; (item = phase->taken.fetch_add(1, std::memory_order_relaxed)) < items; own++) work(item);
            if (own) phase->done.fetch_add(own, std::memory_order_acq_rel);
            for (int looks = 0; phase->done.load(std::memory_order_acquire) < items;)
                if (++looks < PATIENCE)
                    pause();
                else
                    sched_yield();
            phase++;
        }
    };
};

}  // namespace
