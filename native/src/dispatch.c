/* Which kernels run: asked of the processor once, or named by the caller or by BITBERT_ISA. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitbert.h"
#include "dispatch.h"
#include "error.h"
#include "tiles.h"

static _Thread_local char last_error[512];

int bb_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return -1;
}

const char *bitbert_error(void) { return last_error; }

int bitbert_abi_version(void) { return BITBERT_ABI_VERSION; }

enum { NUM_CANDIDATES = 4 };

/* The kernels of this architecture, best first; NULL where the processor lacks the instructions. */
static const bb_kernels *candidate(size_t index) {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
    switch (index) {
        case 0: return avx512 && bb_tiles_permitted() ? &bb_amx_kernels : NULL;
        case 1: return avx512 ? &bb_avx512_kernels : NULL;
        case 2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") ? &bb_avx2_kernels : NULL;
    }
#elif defined(__aarch64__)
    if (index == 0) return &bb_neon_kernels;
#endif
    return index == NUM_CANDIDATES - 1 ? &bb_portable_kernels : NULL;
}

const char *bitbert_instruction_sets(void) {
    static _Thread_local char names[64];
    names[0] = 0;
    for (size_t index = 0; index < NUM_CANDIDATES; index++) {
        const bb_kernels *kernels = candidate(index);
        if (!kernels) continue;
        if (names[0]) strcat(names, " ");
        strcat(names, kernels->name);
    }
    return names;
}

const bb_kernels *bb_find_kernels(const char *name) {
    if (!name || !*name) name = getenv("BITBERT_ISA");
    for (size_t index = 0; index < NUM_CANDIDATES; index++) {
        const bb_kernels *kernels = candidate(index);
        if (kernels && (!name || !*name || !strcmp(kernels->name, name))) return kernels;
    }
    bb_fail("instruction set '%s' is not one that this processor runs; wanted one of: %s", name, bitbert_instruction_sets());
    return NULL;
}
