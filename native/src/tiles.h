/* AMX as both libraries use it: whether it may be used, and eight tiles of 16 rows of 64 bytes. */
#ifndef BB_TILES_H
#define BB_TILES_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BB_TILE_BYTES = 1024, BB_TILE_ROWS = 16 };

long syscall(long number, ...); /* POSIX hides it */

/* Asks the processor for the instructions and the operating system for permission to keep tiles. */
static inline bool bb_tiles_permitted(void) {
    enum { TILES = 1 << 24, INT8 = 1 << 25, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (TILES | INT8)) != (TILES | INT8)) return false;
    return !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA); /* for the process; asking again is harmless */
}

/* What _tile_loadconfig reads. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t num_rows[16];
} bb_tile_shapes = {
    .palette = 1,
    .bytes_per_row = {64, 64, 64, 64, 64, 64, 64, 64},
    .num_rows = {BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS, BB_TILE_ROWS},
};
#else
static inline bool bb_tiles_permitted(void) { return false; }
#endif

#endif
