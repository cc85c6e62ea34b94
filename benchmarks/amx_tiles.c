/* What AMX int8 tile products and tile loads cost on this processor.
 *
 *   cc -O2 benchmarks/amx_tiles.c -o /tmp/amx_tiles && /tmp/amx_tiles
 *
 * A 2 x 2 arrangement of tiles, the largest that eight tile registers hold with both operands, needs as many tile
 * loads as tile products. docs/decisions/0205-amx-tiles.md says what follows from the figures.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 10000, REPEATS = 20, TILE_PRODUCTS = 4, MACS_A_PRODUCT = 16 * 16 * 64 };

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static char memory[4][1024] __attribute__((aligned(64)));

#define MULTIPLY _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7)
#define LOAD _tile_loadd(4, memory[0], 64); _tile_loadd(5, memory[1], 64); _tile_loadd(6, memory[2], 64); _tile_loadd(7, memory[3], 64)

#define BEST(seconds, work)                                        \
    for (int repeat = 0; repeat < REPEATS; repeat++) {             \
        const double start = now_s();                              \
        for (int round = 0; round < ROUNDS; round++) { work; }     \
        const double taken = now_s() - start;                      \
        if (repeat == 0 || taken < (seconds)) (seconds) = taken;   \
    }

__attribute__((target("amx-tile,amx-int8"))) int main(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) {
        fprintf(stderr, "error: this machine has no AMX\n");
        return 2;
    }
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t num_rows[16];
    } shape = {.palette = 1, .bytes_per_row = {64, 64, 64, 64, 64, 64, 64, 64}, .num_rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
    LOAD;
    double products = 0, loads = 0, both = 0;
    BEST(products, MULTIPLY);
    BEST(loads, LOAD);
    BEST(both, LOAD; MULTIPLY);
    const double count = (double)ROUNDS * TILE_PRODUCTS;
    printf("tile product           %6.2f ns  %7.1f G multiply-accumulates/s\n", 1e9 * products / count, count * MACS_A_PRODUCT / products / 1e9);
    printf("tile load              %6.2f ns\n", 1e9 * loads / count);
    printf("one load a product     %6.2f ns  %7.1f G multiply-accumulates/s\n", 1e9 * both / count, count * MACS_A_PRODUCT / both / 1e9);
    _tile_release();
    return 0;
}
